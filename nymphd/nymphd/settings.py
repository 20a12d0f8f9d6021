# SPDX-License-Identifier: MIT
"""Settings of nymphd: environment variables and options. docs/reference/nymphd.md has the table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from limits import parse
from platformdirs import user_state_path
from pydantic import AfterValidator, Field, PositiveFloat, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pynymph.abi import lib


def _state_folder() -> Path:
    """Return systemd's StateDirectory=, or else a folder of the user."""
    named = os.environ.get("STATE_DIRECTORY")
    return Path(named.split(":")[0]) if named else user_state_path("nymphd")


def _rate(text: str) -> str:
    try:
        parse(text)
    except ValueError:
        raise ValueError(f"{text!r} is no rate; say it as in 100/second or 30/minute") from None
    return text


Rate = Annotated[str, AfterValidator(_rate)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """Options of nymphd serve; each is an environment variable too, NYMPHD_ and its name."""

    model_config = SettingsConfigDict(env_prefix="NYMPHD_", extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8443, ge=0, le=65535, description="0: any that is free; the log has it")
    allowed_hosts: list[str] | None = Field(
        None, description="names a Host header may have, without port (default: those of the certificate)"
    )
    state_dir: Path = Field(default_factory=_state_folder, description="where token and certificate are")
    models_dir: Path | None = Field(None, description="a folder for each (default: models in state_dir)")
    certificate: Path | None = Field(None, description="PEM (default: one is made in state_dir)")
    private_key: Path | None = Field(None, description="PEM, of the certificate")
    device: str = Field("auto", description="auto: the driver's, else the model; or a path; or model:")
    ring_size: int = Field(256, ge=1, le=lib.NYMPH_MAX_ENTRIES, description="entries of its own ring")
    board_id: str | None = Field(None, description="of /status (default: what device tree or DMI say)")
    verify_every_s: float = Field(10, ge=0, description="seconds between verifications by itself; 0: none")
    verify_timeout_s: PositiveFloat = Field(10, description="so long an engine has to prove itself")
    max_input_bytes: Count = Field(8 << 20, description="larger inputs of /infer are 413")
    max_inferences: Count = Field(64, description="/infer requests at a time, more are 429")
    infer_timeout_s: PositiveFloat = Field(30, description="for an inference to wait and run; then it is 504")
    max_verifications: Count = Field(8, description="/fabric/verify requests at a time, more are 429")
    max_connections: Count = Field(4096, description="of clients with the token; more are answered 503")
    max_strangers: Count = Field(128, description="connections with TLS whose client has not said the token")
    rate_limit: Rate = Field("2000/second", description="requests of one client address, more are 429")
    login_limit: Rate = Field("30/minute", description="wrong tokens of one client address, more are 429")
    header_timeout_s: PositiveFloat = Field(10, description="for the TLS handshake, and for the headers")
    body_timeout_s: PositiveFloat = Field(30, description="for the body, and to read the answer")
    stop_timeout_s: PositiveFloat = Field(15, description="so long requests may go on after SIGTERM")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key belong together: give both, or none")
        return self

    def model_post_init(self, context: Any, /) -> None:
        if self.models_dir is None:
            self.models_dir = self.state_dir / "models"
