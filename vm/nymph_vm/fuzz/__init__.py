# SPDX-License-Identifier: MIT
"""The fuzzer of /dev/pcie_nymph: `nymph-vm fuzz`.

Data flows one way: generate makes and mutates programs of system calls (program); guest has them run in a
machine (executor.c) and sees the code they reach; verdict compares what they returned with the contract;
campaign keeps what reached new code, and what a machine was lost or complained with, minimized.
"""
