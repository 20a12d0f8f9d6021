#!/bin/sh
# SPDX-License-Identifier: MIT
# In FastAPI 0.165, app.routes no longer has the routes of an included router: there is one object for all of them,
# without a path. Code that looks through app.routes, say for the methods that a 405 has to name in Allow, finds
# nothing, and raises no error; and Starlette's 405 names the methods of one route alone. Asking each element of
# app.routes whether it matches() works for both. The older 0.115 has them all.
# Prints the versions and what was seen; fails if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 0.115.14 0.165.0; do
	python3 -m venv --clear "$folder/venv"
	"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check fastapi==$version
	"$folder/venv/bin/python" - << 'END'
import fastapi
from starlette.routing import Match, Route

router = fastapi.APIRouter()


@router.get("/things/{name}")
@router.delete("/things/{name}")
def things(name: str) -> None: ...


app = fastapi.FastAPI(openapi_url=None)
app.include_router(router)
paths = [route.path for route in app.routes if isinstance(route, Route)]
scope = {"type": "http", "path": "/things/one", "root_path": "", "headers": []}
allowed = [
    method
    for method in ("DELETE", "GET", "POST")
    if any(route.matches({**scope, "method": method})[0] == Match.FULL for route in app.routes)
]
print("fastapi", fastapi.__version__, "routes:", paths, "by matches():", allowed)
is_old = fastapi.__version__ == "0.115.14"
assert paths == (["/things/{name}"] * 2 if is_old else [])
assert allowed == ["DELETE", "GET"]
END
done
