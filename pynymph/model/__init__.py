# SPDX-License-Identifier: MIT
"""The driver's contract, docs/reference/requests.md, in pure Python: Ring(device="model:") uses it.

A Model takes the driver's requests and gives its answers, errors and hashes. It moves bytes itself, in the
calling thread, as soon as an entry is accepted, unless the ring is paused: one of the orders the driver could
choose. It always says that it is a model: its one engine has that name.

Where it knows less than a kernel: locked memory is charged by pages, not folios, and to the Model, not the
user; nothing is pinned, so memory that is unmapped while queued is -EFAULT also with ZERO_COPY or registered;
how many rings there are in all is nobody's concern. What it exports is no dma-buf but a memfd, which Models
import, in other processes too; its charge ends with its handle, or an import by the same Model. And Ctrl-C
can cut a request in two.
"""

from pynymph.model.requests import ENGINE as ENGINE
from pynymph.model.requests import Model as Model
