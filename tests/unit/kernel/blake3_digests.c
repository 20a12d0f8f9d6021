// SPDX-License-Identifier: GPL-2.0-only
/*
 * For machines that are emulated: hashes of what it reads, by the variant NAME if there is one, to standard
 * output. First those of all lengths from 0 on, then the same in batches, then copies and their hashes.
 */
#include <stdio.h>
#include <stdlib.h>

#include "variant.h"

#define LONGEST 16384
#define BATCH 37
#define ROOM 400000

static u8 input[ROOM], copy[ROOM], out[LONGEST + BATCH][32];
static struct nymph_blake3_input inputs[LONGEST + BATCH];

int main(void)
{
	struct nymph_blake3 *hash = malloc(sizeof(*hash));
	struct nymph_blake3_batch *batch = malloc(nymph_blake3_batch_size());
	size_t got = fread(input, 1, sizeof(input), stdin);
	size_t i;

	if (!hash || !batch || got < LONGEST + 16)
		return 1;
#ifdef NAME
	nymph_blake3_use(&NAME);
#endif
	for (i = 0; i <= LONGEST; i++) {
		inputs[i].data = input + i % 16;
		inputs[i].len = i;
		nymph_blake3_init(hash);
		nymph_blake3_update(hash, inputs[i].data, i);
		nymph_blake3_final(hash, out[i]);
	}
	fwrite(out, 32, LONGEST + 1, stdout);
	for (i = 0; i <= LONGEST; i += BATCH)
		nymph_blake3_hash_many(batch, inputs + i, LONGEST + 1 - i < BATCH ? LONGEST + 1 - i : BATCH,
				       out + i);
	fwrite(out, 32, LONGEST + 1, stdout);
	for (i = 1; i < got; i = 3 * i + 1) {
		nymph_blake3_init(hash);
		nymph_blake3_update_copy(hash, copy, input, i);
		nymph_blake3_update_copy(hash, copy + i, input + i, got - i);
		nymph_blake3_final(hash, out[0]);
		fwrite(out[0], 32, 1, stdout);
		fwrite(copy, 1, got, stdout);
	}
	return 0;
}
