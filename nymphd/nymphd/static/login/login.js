// SPDX-License-Identifier: MIT
// Without it the form works, too; with it, a wrong token is said on the page.

const form = document.querySelector("form");
const said = form.querySelector("[role=alert]");

form.addEventListener("submit", async (event) => {
	event.preventDefault();
	const button = form.querySelector("button");
	button.disabled = true;
	said.textContent = "";
	try {
		const answer = await fetch("/session", {
			method: "POST",
			body: new URLSearchParams(new FormData(form)),
			redirect: "manual",
		});
		if (answer.type === "opaqueredirect") {
			location.replace("/");
			return;
		}
		said.textContent = answer.status === 401 ? "This is not the token." : (await answer.json()).error;
		form.token.select();
	} catch {
		said.textContent = "nymphd does not answer.";
	}
	button.disabled = false;
});
