// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: statements about a ring, the driver and the kernel, keyed or signed with
 * a key of the administrator.
 *
 * The key is in a keyring of the module's own, as NVMe has one: root adds the key, and
 * the users of rings need no access to it.
 */
#include <crypto/sha2.h>
#include <keys/user-type.h>
#include <linux/buildid.h>
#include <linux/cred.h>
#include <linux/err.h>
#include <linux/gfp.h>
#include <linux/kernel.h>
#include <linux/key.h>
#include <linux/keyctl.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/timekeeping.h>
#include <linux/uaccess.h>
#include <linux/uidgid.h>
#include <linux/user_namespace.h>
#include <linux/utsname.h>

#include "ring.h"

#if IS_REACHABLE(CONFIG_ASYMMETRIC_KEY_TYPE) && \
	IS_REACHABLE(CONFIG_CRYPTO_LIB_SHA256)
#define NYMPH_HAS_SIGNERS
#include <keys/asymmetric-type.h> /* not without CONFIG_KEYS */
#endif

/**
 * struct nymph_signer - the administrator's key that signs
 * @key: the key, or NULL
 * @size: bytes of its signatures
 */
struct nymph_signer {
	struct key *key;
	u32 size;
};

#ifdef CONFIG_KEYS

static struct key *nymph_keyring;

/* Returns the administrator's key of a type, to be put, or why there is none. */
static struct key *nymph_attest_find(struct key_type *type)
{
	/* whoever asks has all rights of the keyring's possessor */
	key_ref_t found = keyring_search(make_key_ref(nymph_keyring, true),
					 type, NYMPH_ATTEST_KEY, false);

	if (IS_ERR(found))
		return found == ERR_PTR(-EAGAIN) ? ERR_PTR(-ENOKEY) :
						   ERR_CAST(found);
	return key_ref_to_ptr(found);
}

/* Copies the administrator's key. Returns 0, or why there is none. */
static int nymph_attest_key(u8 to[NYMPH_ATTEST_KEY_SIZE])
{
	struct key *key = nymph_attest_find(&key_type_logon);
	const struct user_key_payload *payload;
	int ret = 0;

	if (IS_ERR(key))
		return PTR_ERR(key);
	down_read(&key->sem);
	payload = user_key_payload_locked(key);
	if (!payload)
		ret = -EKEYREVOKED;
	else if (payload->datalen != NYMPH_ATTEST_KEY_SIZE)
		ret = -EKEYREJECTED;
	else
		memcpy(to, payload->data, NYMPH_ATTEST_KEY_SIZE);
	up_read(&key->sem);
	key_put(key);
	return ret;
}

/**
 * nymph_attest_init() - Make the keyring when the module is loaded
 *
 * Return: 0 or a negative errno.
 */
int nymph_attest_init(void)
{
	nymph_keyring = keyring_alloc(NYMPH_ATTEST_KEYRING, GLOBAL_ROOT_UID,
				      GLOBAL_ROOT_GID, current_cred(),
				      (KEY_POS_ALL & ~KEY_POS_SETATTR) |
				      (KEY_USR_ALL & ~KEY_USR_SETATTR),
				      KEY_ALLOC_NOT_IN_QUOTA, NULL, NULL);
	return PTR_ERR_OR_ZERO(nymph_keyring);
}

/**
 * nymph_attest_exit() - Give up the keyring when the module is unloaded
 */
void nymph_attest_exit(void)
{
	key_revoke(nymph_keyring);
	key_put(nymph_keyring);
}

#else /* !CONFIG_KEYS */

static int nymph_attest_key(u8 to[NYMPH_ATTEST_KEY_SIZE])
{
	return -ENOKEY;
}

int nymph_attest_init(void)
{
	return 0;
}

void nymph_attest_exit(void)
{
}

#endif /* !CONFIG_KEYS */

#ifdef NYMPH_HAS_SIGNERS

/* Returns the errno of ATTEST for one of the kernel's keys or crypto. */
static int nymph_signer_errno(int ret)
{
	switch (ret) {
	case -ENOMEM:
	case -EINTR:
		return ret;
	case -EINVAL: /* not RSA, or of a length that the kernel does not serve */
	case -EOVERFLOW:
	case -EBADMSG:
		return -EKEYREJECTED;
	default: /* -ENOENT, -ENOPKG: a module of the kernel's crypto is missing */
		return -EOPNOTSUPP;
	}
}

static struct kernel_pkey_params
nymph_signer_params(const struct nymph_signer *signer)
{
	return (struct kernel_pkey_params){
		.key = signer->key,
		.encoding = "pkcs1",
		.hash_algo = "sha256",
		.in_len = SHA256_DIGEST_SIZE,
		.out_len = signer->size,
		.op = kernel_pkey_sign,
	};
}

/* Finds the administrator's key that signs. Returns 0, or why there is none. */
static int nymph_signer_get(struct nymph_signer *signer)
{
	struct kernel_pkey_query info = {};
	struct kernel_pkey_params params;
	int ret;

	signer->key = nymph_attest_find(&key_type_asymmetric);
	if (IS_ERR(signer->key)) {
		ret = PTR_ERR(signer->key);
		signer->key = NULL;
		return ret;
	}
	params = nymph_signer_params(signer);
	ret = signer->key->type->asym_query(&params, &info);
	if (ret)
		return nymph_signer_errno(ret);
	if (!(info.supported_ops & KEYCTL_SUPPORTS_SIGN) ||
	    info.max_sig_size < NYMPH_SIGNATURE_MIN ||
	    info.max_sig_size > NYMPH_SIGNATURE_MAX)
		return -EKEYREJECTED;
	signer->size = info.max_sig_size;
	return 0;
}

static void nymph_signer_put(struct nymph_signer *signer)
{
	key_put(signer->key);
}

/*
 * Signs. Memory for @signature is kmalloc()'s, as a device may write it. Returns 0 or
 * a negative errno.
 */
static int nymph_sign(const struct nymph_signer *signer, const void *data,
		      size_t size, u8 *signature)
{
	struct kernel_pkey_params params = nymph_signer_params(signer);
	u8 *hash = kmalloc(SHA256_DIGEST_SIZE, GFP_KERNEL_ACCOUNT);
	int ret;

	if (!hash)
		return -ENOMEM;
	sha256(data, size, hash);
	ret = signer->key->type->asym_eds_op(&params, hash, signature);
	kfree(hash);
	if (ret < 0)
		return nymph_signer_errno(ret);
	/* some kernels answer 0, and others the length */
	return ret && ret != signer->size ? -EKEYREJECTED : 0;
}

#else /* !NYMPH_HAS_SIGNERS */

static int nymph_signer_get(struct nymph_signer *signer)
{
	return -EOPNOTSUPP;
}

static void nymph_signer_put(struct nymph_signer *signer)
{
}

static int nymph_sign(const struct nymph_signer *signer, const void *data,
		      size_t size, u8 *signature)
{
	return -EOPNOTSUPP;
}

#endif /* !NYMPH_HAS_SIGNERS */

/**
 * struct nymph_attestation - working memory of nymph_attest()
 * @hash: keyed hash of the statement
 * @key: the key
 * @engines: engines that there are
 * @text_len: bytes in @text
 * @statement: the statement, followed by
 * @text: its text
 *
 * The text has room for more than 128 engines and all parameters: what the kernel takes
 * for a parameter has at most 1 KiB.
 */
struct nymph_attestation {
	struct nymph_blake3 hash;
	u8 key[NYMPH_ATTEST_KEY_SIZE];
	struct nymph_engine_info engines[NYMPH_MAX_ENGINES];
	size_t text_len;
	struct nymph_statement statement;
	char text[NYMPH_STATEMENT_MAX - sizeof(struct nymph_statement)];
};

static __printf(2, 3) void nymph_attest_print(struct nymph_attestation *a,
					      const char *format, ...)
{
	va_list args;

	va_start(args, format);
	a->text_len += vscnprintf(a->text + a->text_len,
				  sizeof(a->text) - a->text_len, format, args);
	va_end(args);
}

static void nymph_attest_module(struct nymph_attestation *a)
{
	nymph_attest_print(a, "version=%s\n", NYMPH_VERSION);
#ifdef MODULE
	if (THIS_MODULE->srcversion)
		nymph_attest_print(a, "srcversion=%s\n",
				   THIS_MODULE->srcversion);
#ifdef CONFIG_STACKTRACE_BUILD_ID
	nymph_attest_print(a, "build_id=%*phN\n", BUILD_ID_SIZE_MAX,
			   THIS_MODULE->build_id);
#endif
#endif
}

static void nymph_attest_kernel(struct nymph_attestation *a)
{
	/* that of the machine, whatever the caller's namespace calls itself */
	const struct new_utsname *name = &init_uts_ns.name;

	nymph_attest_print(a, "kernel=%s\n", name->release);
	nymph_attest_print(a, "kernel_version=%s\n", name->version);
	nymph_attest_print(a, "machine=%s\n", name->machine);
	nymph_attest_print(a, "blake3=%s\n", nymph_blake3_chosen);
}

static int nymph_attest_engines(struct nymph_attestation *a)
{
	int i, n = nymph_engine_infos(a->engines, ARRAY_SIZE(a->engines));

	for (i = 0; i < n; i++)
		nymph_attest_print(a, "engine.%u=%s\n", a->engines[i].id,
				   a->engines[i].name);
	return n < 0 ? n : 0;
}

static int nymph_attest_parameters(struct nymph_attestation *a)
{
#ifdef MODULE
	const struct kernel_param *each;
	/* as sysfs reads them: into a page */
	char *value = (char *)get_zeroed_page(GFP_KERNEL_ACCOUNT);

	if (!value)
		return -ENOMEM;
	kernel_param_lock(THIS_MODULE);
	for (each = THIS_MODULE->kp;
	     each < THIS_MODULE->kp + THIS_MODULE->num_kp; each++) {
		if (!each->ops->get || each->ops->get(value, each) < 0)
			continue;
		nymph_attest_print(a, "parameter.%s=%s\n", each->name,
				   strim(value));
	}
	kernel_param_unlock(THIS_MODULE);
	free_page((unsigned long)value);
#endif
	return 0;
}

/**
 * nymph_statement_fill() - Fill all of a statement but its text
 * @statement: filled
 * @snap: state of the ring
 * @nonce: nonce of the request
 * @uid: user of the ring
 * @text_len: bytes of the text
 */
void nymph_statement_fill(struct nymph_statement *statement,
			  const struct nymph_snapshot *snap, const u8 *nonce,
			  u32 uid, u32 text_len)
{
	*statement = (struct nymph_statement){
		.magic = NYMPH_STATEMENT_MAGIC,
		.size = cpu_to_le32(sizeof(*statement) + text_len),
		.text_offset = cpu_to_le32(sizeof(*statement)),
		.realtime_ns = cpu_to_le64(ktime_get_real_ns()),
		.transcript_count = cpu_to_le64(snap->transcript_count),
		.transcript_id = cpu_to_le64(snap->transcript_id),
		.dma_bytes = cpu_to_le64(snap->dma_bytes),
		.ring_size = cpu_to_le32(snap->ring.ring_size),
		.head = cpu_to_le32(snap->ring.head),
		.tail = cpu_to_le32(snap->ring.tail),
		.ring_addr = cpu_to_le64(snap->ring.ring_addr),
		.active_descriptors = cpu_to_le32(snap->active_descriptors),
		.unread_records = cpu_to_le32(snap->unread_records),
		.errors = cpu_to_le64(snap->errors),
		.first_error = cpu_to_le32(snap->first_error),
		.state = cpu_to_le32(snap->state),
		.engine = cpu_to_le32(snap->engine),
		.uid = cpu_to_le32(uid),
	};
	memcpy(statement->nonce, nonce, sizeof(statement->nonce));
	memcpy(statement->transcript, snap->transcript,
	       sizeof(statement->transcript));
	memcpy(statement->ring_hash, snap->ring_hash,
	       sizeof(statement->ring_hash));
}

static int nymph_attest_state(struct nymph_attestation *a,
			      struct nymph_ring *ring, const u8 *nonce)
{
	struct nymph_snapshot snap = {};
	int ret = nymph_ring_snapshot(ring, &snap, NULL);

	if (!ret)
		nymph_statement_fill(&a->statement, &snap, nonce,
				     from_kuid(&init_user_ns, ring->cred->uid),
				     a->text_len);
	return ret;
}

/* Writes the statement, and its signature. Returns 0 or a negative errno. */
static int nymph_attest_sign(const struct nymph_attestation *a, size_t size,
			     const struct nymph_signer *signer,
			     struct nymph_attest *arg)
{
	u8 *signature;
	int ret;

	if (signer->size > arg->max_signature)
		return -ENOSPC;
	signature = kzalloc(signer->size, GFP_KERNEL_ACCOUNT);
	if (!signature)
		return -ENOMEM;
	ret = nymph_sign(signer, &a->statement, size, signature);
	if (ret)
		goto free;
	arg->signature_size = signer->size;
	if (copy_to_user(u64_to_user_ptr(arg->statement), &a->statement, size) ||
	    copy_to_user(u64_to_user_ptr(arg->signature), signature,
			 signer->size))
		ret = -EFAULT;
free:
	kfree(signature);
	return ret;
}

/**
 * nymph_attest() - Make a statement about a ring, and key or sign it
 * @ring: the ring
 * @arg: the request, with known flags; what is out is filled
 *
 * With NYMPH_ATTEST_SIGN the statement is signed, its digest is zeros, and no logon key
 * is looked for.
 *
 * Return: 0; -ENOKEY, -EKEYREVOKED, -EKEYEXPIRED, or -EKEYREJECTED if the key has the
 * wrong size, or cannot sign; -EOPNOTSUPP if the kernel cannot sign; -ENOSPC if the
 * caller has too little room; -EFAULT; -ENOMEM; -EINTR if current was killed; -ESTALE
 * if the ring was reset or replaced.
 */
int nymph_attest(struct nymph_ring *ring, struct nymph_attest *arg)
{
	bool sign = arg->flags & NYMPH_ATTEST_SIGN;
	struct nymph_signer signer = {};
	struct nymph_attestation *a;
	size_t size;
	int ret;

	BUILD_BUG_ON(sizeof(NYMPH_STATEMENT_MAGIC) != sizeof(a->statement.magic));
	BUILD_BUG_ON(offsetof(struct nymph_attestation, text) !=
		     offsetof(struct nymph_attestation, statement) +
		     sizeof(a->statement));

	a = kvzalloc(sizeof(*a), NYMPH_GFP_SIZED);
	if (!a)
		return -ENOMEM;
	ret = sign ? nymph_signer_get(&signer) : nymph_attest_key(a->key);
	if (ret)
		goto free;
	nymph_attest_module(a);
	nymph_attest_kernel(a);
	ret = nymph_attest_engines(a);
	if (!ret)
		ret = nymph_attest_parameters(a);
	if (!ret)
		ret = nymph_attest_state(a, ring, arg->nonce);
	if (ret)
		goto free;

	size = sizeof(a->statement) + a->text_len;
	arg->statement_size = size;
	memset(arg->digest, 0, sizeof(arg->digest));
	arg->signature_size = 0;
	if (size > arg->max_statement) {
		ret = -ENOSPC;
	} else if (sign) {
		ret = nymph_attest_sign(a, size, &signer, arg);
	} else {
		nymph_blake3_init_keyed(&a->hash, a->key);
		nymph_blake3_update(&a->hash, &a->statement, size);
		nymph_blake3_final(&a->hash, arg->digest);
		if (copy_to_user(u64_to_user_ptr(arg->statement), &a->statement,
				 size))
			ret = -EFAULT;
	}
free:
	nymph_signer_put(&signer);
	kvfree_sensitive(a, sizeof(*a));
	return ret;
}
