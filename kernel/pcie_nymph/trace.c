// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: the tracepoints' definitions.
 */
#define CREATE_TRACE_POINTS
#include "trace.h"
