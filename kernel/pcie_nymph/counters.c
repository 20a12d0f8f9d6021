// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: the module's counters: one of each per CPU, so that counting takes
 * no lock and no shared cache line.
 */
#include <linux/cpumask.h>
#include <linux/percpu.h>

#include "counters.h"

static DEFINE_PER_CPU(long [NYMPH_NR_COUNTERS], nymph_counters);

/**
 * nymph_count() - Raise or lower a counter
 * @counter: the counter
 * @n: what is added to it; negative to lower it
 */
void nymph_count(enum nymph_counter counter, long n)
{
	this_cpu_add(nymph_counters[counter], n);
}

/**
 * nymph_counter_read() - Add up a counter over all CPUs
 * @counter: the counter
 *
 * Return: the total, which can be a moment old.
 */
long nymph_counter_read(enum nymph_counter counter)
{
	long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += per_cpu(nymph_counters, cpu)[counter];
	return sum;
}
