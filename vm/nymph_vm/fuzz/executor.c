// SPDX-License-Identifier: MIT
/*
 * Runs programs of system calls in a guest, and says which code of the module each of them reached first.
 *
 * usage: executor UID GID
 *
 * Batches of programs come from stdin, and a reply to each program goes to stdout; see nymph_vm/fuzz/guest.py for
 * both. The process that reads them runs as root, and keeps coverage. A child of its, which is UID and GID, runs the
 * programs, until one takes too long or is its end; then there is another child. All that a program has is at fixed
 * addresses and under fixed file numbers, and is gone after it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/kcov.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define THREADS 4
#define STEPS 512
#define COVERED (1 << 18) /* code addresses, of each thread */
#define EDGE_BITS 22
#define READ_BYTES (64 << 10) /* that a program's READs return, in all */
#define REAP_SECONDS 30

/* As in nymph_vm/fuzz/program.py. */
#define ARENA 0x1000000000UL
#define ARENA_SIZE 0x10000000UL
#define CONTROL (ARENA + 0x0000000)
#define CONTROL_SIZE 0x100000
#define SOURCE (ARENA + 0x1000000)
#define TARGET (ARENA + 0x2000000)
#define FIXED (ARENA + 0x3000000)
#define HALF_SIZE 0x200000
#define FIRST_FILE 16 /* files below are the executor's */
#define SOCKETS 60

enum { CALL, DATA, NOW, CLOCK, READ, MOVE, FORK, KILL, SYNC };
enum { DONE, TIMED_OUT, ENDED, STUCK };

struct step {
	uint8_t op, thread, fail, nr_args;
	uint32_t len;
	uint64_t args[];
};

struct reply {
	uint32_t status, nr_steps, nr_edges, nr_bytes;
};

/* What the child and its parent share. */
struct shared {
	uint32_t nr_steps;
	int32_t at[THREADS]; /* the step that a thread is in, or -1 */
	int64_t results[STEPS];
	uint32_t nr_bytes;
	uint8_t bytes[READ_BYTES];
	uint8_t program[1 << 20];
};

static struct shared *shared;
static uint64_t *covered[THREADS];
static int kcov[THREADS];
static uint8_t edges[1 << (EDGE_BITS - 3)];
static struct step *steps[STEPS];
static uint32_t nr_steps;
static int pattern, go[2], done[2];

/* The child's. */
static int failing[THREADS];
static pthread_t threads[THREADS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct {
	uint32_t from, to;
	unsigned int running, turn;
} phase;
static pid_t forked[16];
static unsigned int nr_forked;

static void fail(const char *what)
{
	fprintf(stderr, "executor: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The nth of what can fail in this thread does so, once; 0: nothing does. */
static void inject(unsigned int thread, unsigned int nth)
{
	char text[4];

	if (failing[thread] >= 0 &&
	    pwrite(failing[thread], text, snprintf(text, sizeof(text), "%u", nth), 0) < 0)
		fail("fail-nth");
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

/* Memory of a program may not be there: the kernel finds out. */
static int64_t poke(uint64_t to, const void *from, size_t len)
{
	struct iovec here = { (void *)from, len }, there = { (void *)to, len };
	ssize_t n = process_vm_writev(getpid(), &here, 1, &there, 1, 0);

	return n < 0 ? -errno : n;
}

static int64_t peek(uint64_t from, void *to, size_t len)
{
	struct iovec here = { to, len }, there = { (void *)from, len };
	ssize_t n = process_vm_readv(getpid(), &here, 1, &there, 1, 0);

	return n < 0 ? -errno : n;
}

static int64_t move(int64_t file, uint64_t to)
{
	if (file < 0 || (uint64_t)file == to)
		return file;
	if (dup2(file, to) < 0)
		return -errno;
	close(file);
	return to;
}

static int64_t call(const struct step *s, unsigned int thread)
{
	const uint64_t *a = s->args;
	int64_t ret;

	if (s->fail)
		inject(thread, s->fail);
	ret = syscall(a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
	if (ret < 0)
		ret = -errno;
	if (s->fail)
		inject(thread, 0);
	return s->nr_args > 7 && ret >= 0 ? move(ret, a[7]) : ret;
}

static int64_t read_out(uint64_t from, uint64_t len)
{
	uint32_t at = __atomic_fetch_add(&shared->nr_bytes, len, __ATOMIC_RELAXED);

	if (len > READ_BYTES || at > READ_BYTES - len)
		return -ENOSPC;
	return peek(from, shared->bytes + at, len) == (int64_t)len ? (int64_t)at : -EFAULT;
}

static void run(uint32_t from, uint32_t to, unsigned int thread);

/* The child runs the thread's next steps. */
static int64_t run_forked(const struct step *s, uint32_t from, uint32_t to, unsigned int thread)
{
	pid_t child;

	if (nr_forked == 16)
		return -EAGAIN;
	child = fork();
	if (child < 0)
		return -errno;
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(done[1]);
		nr_forked = 0;
		run(from, to, thread);
		_exit(0);
	}
	forked[nr_forked++] = child;
	if (s->args[1])
		waitpid(child, NULL, 0);
	return 0;
}

static void run(uint32_t from, uint32_t to, unsigned int thread)
{
	for (uint32_t i = from; i < to; i++) {
		const struct step *s = steps[i];
		const uint64_t *a = s->args;
		int64_t ret = 0;
		uint64_t when;
		int32_t file;

		if (s->thread != thread)
			continue;
		__atomic_store_n(&shared->at[thread], i, __ATOMIC_RELAXED);
		switch (s->op) {
		case CALL:
			ret = call(s, thread);
			break;
		case DATA:
			ret = poke(a[0], &a[s->nr_args], s->len);
			break;
		case NOW:
			when = now() + a[1];
			poke(a[0], &when, sizeof(when));
			ret = when;
			break;
		case CLOCK:
			ret = now();
			break;
		case READ:
			ret = read_out(a[0], a[1]);
			break;
		case MOVE:
			ret = peek(a[0], &file, sizeof(file));
			if (ret >= 0)
				ret = file < FIRST_FILE ? -EBADF : move(file, a[1]);
			break;
		case FORK:
			ret = run_forked(s, i + 1, i + 1 + a[0] < to ? i + 1 + a[0] : to, thread);
			shared->results[i] = ret;
			i += a[0];
			continue;
		case KILL:
			ret = a[0] < nr_forked && kill(forked[a[0]], a[1]) ? -errno : 0;
			break;
		}
		shared->results[i] = ret;
	}
	__atomic_store_n(&shared->at[thread], -1, __ATOMIC_RELAXED);
}

static void cover(unsigned int thread)
{
	char path[64];

	if (ioctl(kcov[thread], KCOV_ENABLE, KCOV_TRACE_PC))
		fail("KCOV_ENABLE");
	snprintf(path, sizeof(path), "/proc/self/task/%d/fail-nth", gettid());
	failing[thread] = open(path, O_RDWR);
}

static void *run_thread(void *arg)
{
	unsigned int thread = (uintptr_t)arg, turn = 0;

	cover(thread);
	pthread_mutex_lock(&lock);
	for (;;) {
		while (phase.turn == turn)
			pthread_cond_wait(&changed, &lock);
		turn = phase.turn;
		pthread_mutex_unlock(&lock);
		run(phase.from, phase.to, thread);
		pthread_mutex_lock(&lock);
		phase.running--;
		pthread_cond_broadcast(&changed);
	}
	return NULL;
}

/* Runs steps that lie between two SYNCs. */
static void run_phase(uint32_t from, uint32_t to)
{
	uint32_t start = from;

	/* what comes before the first step of another thread is done before they start */
	while (start < to && !steps[start]->thread)
		start++;
	run(from, start, 0);
	if (start == to)
		return;
	pthread_mutex_lock(&lock);
	for (uint32_t i = start; i < to; i++) {
		unsigned int thread = steps[i]->thread;

		if (thread && !threads[thread] &&
		    pthread_create(&threads[thread], NULL, run_thread, (void *)(uintptr_t)thread))
			fail("pthread_create");
	}
	phase.running = 0;
	for (unsigned int i = 1; i < THREADS; i++)
		phase.running += !!threads[i];
	phase.from = start;
	phase.to = to;
	phase.turn++;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
	run(start, to, 0);
	pthread_mutex_lock(&lock);
	while (phase.running)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
}

static void map(uint64_t at, size_t size, int protection, int file)
{
	int flags = MAP_PRIVATE | MAP_FIXED | (file < 0 ? MAP_ANONYMOUS : 0);

	if (mmap((void *)at, size, protection, flags, file, 0) == MAP_FAILED)
		fail("mmap");
}

static void lay_out(void)
{
	int pair[2];

	munmap((void *)ARENA, ARENA_SIZE);
	map(CONTROL, CONTROL_SIZE, PROT_READ | PROT_WRITE, -1);
	map(SOURCE, HALF_SIZE, PROT_READ | PROT_WRITE, pattern);
	map(TARGET, HALF_SIZE, PROT_READ | PROT_WRITE, -1);
	map(FIXED, HALF_SIZE, PROT_READ, pattern);
	close_range(FIRST_FILE, ~0U, 0);
	if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, pair))
		fail("socketpair");
	move(pair[0], SOCKETS);
	move(pair[1], SOCKETS + 1);
}

static void parse(void)
{
	uint8_t *at = shared->program;

	nr_steps = shared->nr_steps;
	for (uint32_t i = 0; i < nr_steps; i++) {
		steps[i] = (struct step *)at;
		at += sizeof(struct step) + 8 * steps[i]->nr_args + (steps[i]->len + 7) / 8 * 8;
	}
}

static void be_child(uid_t uid, gid_t gid)
{
	static const struct rlimit no_core;
	char byte;

	if (setgroups(0, NULL) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
		fail("setresuid");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_DUMPABLE, 1); /* else fail-nth is root's */
	setrlimit(RLIMIT_CORE, &no_core);
	signal(SIGPIPE, SIG_IGN);
	cover(0);
	lay_out();
	while (read(go[0], &byte, 1) == 1) {
		uint32_t from = 0;

		parse();
		for (uint32_t i = 0; i <= nr_steps; i++) {
			if (i < nr_steps && steps[i]->op != SYNC)
				continue;
			run_phase(from, i);
			from = i + 1;
		}
		for (; nr_forked; nr_forked--) {
			kill(forked[nr_forked - 1], SIGKILL);
			waitpid(forked[nr_forked - 1], NULL, 0);
		}
		lay_out();
		if (write(done[1], &byte, 1) != 1)
			break;
	}
	_exit(0);
}

static void read_all(void *to, size_t len)
{
	for (size_t at = 0; at < len;) {
		ssize_t n = read(0, to + at, len - at);

		if (n <= 0)
			exit(n < 0);
		at += n;
	}
}

static void write_text(const char *path, const char *text)
{
	int file = open(path, O_WRONLY);

	/* a kernel without that injects nothing */
	if (file >= 0 && write(file, text, strlen(text)) < 0)
		fail(path);
	if (file >= 0)
		close(file);
}

static void start_coverage(void)
{
	for (unsigned int i = 0; i < THREADS; i++) {
		kcov[i] = open("/sys/kernel/debug/kcov", O_RDWR);
		if (kcov[i] < 0 || ioctl(kcov[i], KCOV_INIT_TRACE, COVERED))
			fail("kcov");
		covered[i] = mmap(NULL, COVERED * sizeof(**covered), PROT_READ | PROT_WRITE, MAP_SHARED,
				  kcov[i], 0);
		if (covered[i] == MAP_FAILED)
			fail("kcov");
	}
}

/* Adds edges that were not seen before to @found, and returns how many. */
static uint32_t take_edges(uint64_t base, uint32_t *found, uint32_t max)
{
	uint32_t n = 0;

	for (unsigned int i = 0; i < THREADS; i++) {
		uint64_t count = __atomic_load_n(covered[i], __ATOMIC_RELAXED), before = 0;

		for (uint64_t k = 1; k <= count && k < COVERED; k++) {
			uint64_t at = covered[i][k] - base;
			uint32_t edge = ((at ^ before * 31) * 0x9E3779B97F4A7C15ULL) >> (64 - EDGE_BITS);

			before = at;
			if (edges[edge / 8] & 1 << edge % 8)
				continue;
			if (n < max) {
				edges[edge / 8] |= 1 << edge % 8;
				found[n++] = edge;
			}
		}
		__atomic_store_n(covered[i], 0, __ATOMIC_RELAXED);
	}
	return n;
}

/* Returns where the module's code starts. */
static uint64_t module_base(void)
{
	FILE *file = fopen("/sys/module/pcie_nymph/sections/.text", "r");
	unsigned long base;

	if (!file || fscanf(file, "%lx", &base) != 1)
		fail("/sys/module/pcie_nymph/sections/.text");
	fclose(file);
	return base;
}

static pid_t start_child(uid_t uid, gid_t gid)
{
	pid_t child;

	if (pipe2(go, O_CLOEXEC) || pipe2(done, O_CLOEXEC))
		fail("pipe2");
	child = fork();
	if (child < 0)
		fail("fork");
	if (!child) {
		/* whatever this program left behind is not the programs' */
		close(go[1]);
		close(done[0]);
		be_child(uid, gid);
	}
	close(go[0]);
	close(done[1]);
	return child;
}

/* Returns a number that changes as long as any thread of a process does anything. */
static uint64_t activity(pid_t process)
{
	uint64_t sum = 0;
	struct timespec t;
	clockid_t clock;

	for (unsigned int i = 0; i < THREADS; i++)
		sum = sum * 1000 + __atomic_load_n(&shared->at[i], __ATOMIC_RELAXED);
	if (!clock_getcpuclockid(process, &clock) && !clock_gettime(clock, &t))
		sum += t.tv_sec * 1000000000ULL + t.tv_nsec;
	return sum;
}

/*
 * Has the child run what is in @shared. It may take @limit_ms, or a quarter of that when it does nothing but wait.
 * Returns its status, and sets *child to 0 if that has ended.
 */
static uint32_t run_program(pid_t *child, uint32_t limit_ms)
{
	struct pollfd poller = { done[0], POLLIN, 0 };
	uint64_t start = now(), end = start + limit_ms * 1000000ULL;
	uint64_t active = 0, active_at = start;
	uint32_t status = DONE;
	siginfo_t info = {};
	char byte = 0;

	if (write(go[1], &byte, 1) != 1)
		status = ENDED;
	while (status == DONE) {
		if (poll(&poller, 1, 20) > 0) {
			if (read(done[0], &byte, 1) == 1)
				return DONE;
			status = ENDED;
		} else if (now() > end || now() > active_at + limit_ms * 250000ULL) {
			status = TIMED_OUT;
		} else if (!waitid(P_PID, *child, &info, WEXITED | WNOHANG | WNOWAIT) && info.si_pid) {
			status = ENDED;
		} else if (activity(*child) != active) {
			active = activity(*child);
			active_at = now();
		}
	}
	kill(*child, SIGKILL);
	for (end = now() + REAP_SECONDS * 1000000000ULL; waitpid(*child, NULL, WNOHANG) != *child; usleep(1000))
		if (now() > end)
			return STUCK;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		continue;
	close(go[1]);
	close(done[0]);
	*child = 0;
	return status;
}

int main(int argc, char **argv)
{
	static uint32_t found[1 << 16];
	uint32_t nr_programs, head[3];
	uint64_t base;
	pid_t child = 0;

	if (argc != 3) {
		fprintf(stderr, "usage: executor UID GID\n");
		return 2;
	}
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	signal(SIGPIPE, SIG_IGN);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pattern = memfd_create("pattern", MFD_CLOEXEC);
	if (shared == MAP_FAILED || pattern < 0)
		fail("memory");
	for (uint64_t i = 0, x = 1; i < HALF_SIZE / 8; i++) {
		x = x * 6364136223846793005ULL + 1442695040888963407ULL;
		if (write(pattern, &x, sizeof(x)) != sizeof(x))
			fail("memfd");
	}
	start_coverage();
	base = module_base();
	for (unsigned int i = 0; i < 3; i++) {
		static const char *const kinds[] = { "failslab", "fail_page_alloc", "fail_usercopy" };
		static const char *const settings[][2] = {
			{ "verbose", "0" }, { "ignore-gfp-wait", "N" }, { "ignore-gfp-highmem", "N" },
			{ "min-order", "0" },
		};
		char path[96];

		for (unsigned int k = 0; k < sizeof(settings) / sizeof(*settings); k++) {
			snprintf(path, sizeof(path), "/sys/kernel/debug/%s/%s", kinds[i], settings[k][0]);
			write_text(path, settings[k][1]);
		}
	}

	for (;;) {
		read_all(&nr_programs, sizeof(nr_programs));
		while (nr_programs--) {
			struct reply reply = {};

			/* bytes, steps, ms */
			read_all(head, sizeof(head));
			if (head[0] > sizeof(shared->program) || head[1] > STEPS)
				return 3;
			read_all(shared->program, head[0]);
			shared->nr_steps = head[1];
			shared->nr_bytes = 0;
			memset(shared->at, -1, sizeof(shared->at));
			memset(shared->results, 0x80, head[1] * sizeof(*shared->results));
			if (!child)
				child = start_child(atoi(argv[1]), atoi(argv[2]));
			reply.status = run_program(&child, head[2]);
			reply.nr_steps = head[1];
			reply.nr_edges = take_edges(base, found, sizeof(found) / sizeof(*found));
			reply.nr_bytes = shared->nr_bytes < READ_BYTES ? shared->nr_bytes : READ_BYTES;
			fwrite(&reply, sizeof(reply), 1, stdout);
			fwrite(shared->at, sizeof(shared->at), 1, stdout);
			fwrite(shared->results, sizeof(*shared->results), head[1], stdout);
			fwrite(found, sizeof(*found), reply.nr_edges, stdout);
			fwrite(shared->bytes, 1, reply.nr_bytes, stdout);
			if (reply.status == STUCK) {
				fflush(stdout);
				return 4;
			}
		}
		if (fflush(stdout))
			return 5;
	}
}
