# SPDX-License-Identifier: MIT
"""What was done to nymphd on the model, done to it in the VM: as systemd runs it, on the driver.

The tests are those of tests/unit/nymphd; what they are done to is another.
"""

from collections.abc import Iterator

import pytest
from nymphd_served import InGuest, Served
from test_attacks import (
    test_answers_on_a_kept_connection_are_not_delayed,
    test_cookie_works_only_from_its_own_origin,
    test_hostile_bodies_do_not_block_the_loop,
    test_malformed_requests_are_refused_with_a_reason,
    test_memory_is_freed_after_many_clients,
    test_no_tls_ticket_follows_the_handshake,
    test_only_names_of_the_certificate_are_served,
    test_reset_connections_free_their_place,
    test_silent_connections_cost_little,
    test_status_polling_does_not_delay_probes,
    test_stop_does_not_wait_for_a_closing_websocket,
    test_strangers_with_tls_make_room,
    test_websockets_are_not_counted_as_slow_requests,
)
from test_models import (
    add_moody,
    test_changed_models_are_noticed,
    test_endless_run_is_a_timeout_and_others_go_on,
    test_failed_run_is_an_error_and_others_go_on,
)

__all__ = [
    "test_answers_on_a_kept_connection_are_not_delayed",
    "test_changed_models_are_noticed",
    "test_cookie_works_only_from_its_own_origin",
    "test_endless_run_is_a_timeout_and_others_go_on",
    "test_failed_run_is_an_error_and_others_go_on",
    "test_hostile_bodies_do_not_block_the_loop",
    "test_malformed_requests_are_refused_with_a_reason",
    "test_memory_is_freed_after_many_clients",
    "test_no_tls_ticket_follows_the_handshake",
    "test_only_names_of_the_certificate_are_served",
    "test_reset_connections_free_their_place",
    "test_silent_connections_cost_little",
    "test_status_polling_does_not_delay_probes",
    "test_stop_does_not_wait_for_a_closing_websocket",
    "test_strangers_with_tls_make_room",
    "test_websockets_are_not_counted_as_slow_requests",
]


@pytest.fixture(autouse=True)
def watched(served: Served) -> None:
    """The kernel may not complain."""


@pytest.fixture(scope="module")
def attacked(served_by: Served) -> Iterator[InGuest]:
    """One for all. Its machine is emulated, and slow: that is no engine's fault, and no model's."""
    running = InGuest(served_by, login_limit="100000/minute", verify_timeout_s=60, infer_timeout_s=10)
    yield running
    assert running.restarts() == 0
    assert [entry for entry in running.log() if entry.get("level") == "error"] == []
    running.close()


@pytest.fixture
def ending(attacked: InGuest) -> Iterator[InGuest]:
    yield attacked
    attacked.start()


@pytest.fixture(scope="module")
def tenants(attacked: InGuest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InGuest]:
    add_moody(attacked, tmp_path_factory.mktemp("tenants"))
    yield attacked
    attacked.remove_model("moody")
