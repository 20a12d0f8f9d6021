// SPDX-License-Identifier: MIT
/*
 * Check that nothing is left behind: a process with queued and running transfers ends in some way, many
 * times, and the machine is afterwards as it was before.
 *
 *	leftovers SCENE ROUNDS
 *
 * Exits with 0, with 1 and the reason on stderr, or with 77 and the reason why
 * the scene can't be played here. tests/vm/test_leftovers.py runs it.
 *
 * The file is long because all scenes share the code that looks at the machine before and after them, and
 * nymph-vm builds a program from one file.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/fuse.h>
#include <linux/userfaultfd.h>

#include "pcie_nymph.h"

#define DEVICE "/dev/pcie_nymph"
#define SYSFS "/sys/class/misc/pcie_nymph/"
#define ENTRIES 64
#define WORK 12             /* entries of everything */
#define LARGE (4UL << 20)   /* runs for a while */
#define SMALL (512UL << 10) /* a few of them fit under an ordinary user's memlock limit */
#define PATIENCE 30         /* seconds for what takes far less */

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

/* --- saying no -------------------------------------------------------------------------------- */

static const char *scene;
static int round_nr;

static void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

static void fail(const char *format, ...)
{
	int error = errno;
	va_list args;

	fprintf(stderr, "%s, round %d: ", scene, round_nr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, " (errno %d: %s)\n", error, strerror(error));
	exit(1);
}

static void skip(const char *why)
{
	fprintf(stderr, "%s (%s)\n", why, strerror(errno));
	exit(77);
}

#define must(condition)                                                                                      \
	do {                                                                                                 \
		if (!(condition))                                                                            \
			fail("line %d: not so: %s", __LINE__, #condition);                                   \
	} while (0)

static void nap(long nanoseconds)
{
	struct timespec time = { .tv_nsec = nanoseconds };

	nanosleep(&time, NULL);
}

/* Up to 3 ms, so that what comes next comes at any moment. */
static void moment(void)
{
	nap(random() % 3000000);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/* --- before and after ------------------------------------------------------------------------- */

struct state {
	long contexts, rings, pinned, allocated; /* the driver's counters */
	long acquired;                           /* pages pinned, as the kernel counts them */
	long threads, stuck;
	long refs;
};

static long read_number(const char *path)
{
	FILE *file = fopen(path, "r");
	long number;

	must(file && fscanf(file, "%ld", &number) == 1);
	fclose(file);
	return number;
}

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	must(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
}

/* The number behind a name, in a file of such pairs. */
static long find_number(const char *path, const char *name)
{
	FILE *file = fopen(path, "r");
	char line[256];
	long number = -1;

	must(file);
	while (fgets(line, sizeof(line), file))
		if (!strncmp(line, name, strlen(name)))
			number = atol(line + strlen(name) + 1);
	fclose(file);
	must(number >= 0);
	return number;
}

/* The driver's threads there are, and which tasks, theirs or ours, are in state D. */
static void look_at_tasks(struct state *state)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;

	must(proc);
	while ((entry = readdir(proc))) {
		char path[300], line[512], *name;
		FILE *file;

		snprintf(path, sizeof(path), "/proc/%s/stat", entry->d_name);
		if (entry->d_name[0] < '0' || entry->d_name[0] > '9' || !(file = fopen(path, "r")))
			continue;
		if (fgets(line, sizeof(line), file) && (name = strchr(line, '('))) {
			bool worker = !strncmp(name, "(nymph/", 7);

			state->threads += worker;
			if (worker || !strncmp(name, "(leftovers", 10))
				state->stuck += strstr(name, ") D ") != NULL;
		}
		fclose(file);
	}
	closedir(proc);
}

static struct state look(void)
{
	struct state state = {
		.contexts = read_number(SYSFS "counters/contexts"),
		.rings = read_number(SYSFS "counters/rings"),
		.pinned = read_number(SYSFS "counters/pinned_pages"),
		.allocated = read_number(SYSFS "counters/allocated_pages"),
		.refs = read_number("/sys/module/pcie_nymph/refcnt"),
	};

	look_at_tasks(&state);
	if (geteuid() == 0) {
		write_text("/proc/sys/vm/stat_refresh", "1");
		state.acquired = find_number("/proc/vmstat", "nr_foll_pin_acquired") -
				 find_number("/proc/vmstat", "nr_foll_pin_released");
	}
	return state;
}

/* A worker has the module for a moment longer than its ring lasts: all but what files have is waited for. */
static struct state look_at_rest(void)
{
	double end = now() + PATIENCE;
	struct state state;

	do {
		state = look();
		if (!state.rings && state.refs == state.contexts)
			return state;
		nap(2000000);
	} while (now() < end);
	fail("there is no rest: %ld rings, %ld references, %ld contexts", state.rings, state.refs,
	     state.contexts);
}

/* close() waits for nothing that runs, so the end can be a moment away. */
static void all_is_as(const struct state *before)
{
	double end = now() + PATIENCE;
	struct state state;

	do {
		state = look();
		if (!memcmp(&state, before, sizeof(state)))
			return;
		nap(2000000);
	} while (now() < end);
	fail("left behind: contexts %ld (%ld), rings %ld (%ld), pinned %ld (%ld), allocated %ld (%ld), "
	     "acquired %ld (%ld), threads %ld (%ld), in state D %ld (%ld), references %ld (%ld)",
	     state.contexts, before->contexts, state.rings, before->rings, state.pinned, before->pinned,
	     state.allocated, before->allocated, state.acquired, before->acquired, state.threads,
	     before->threads, state.stuck, before->stuck, state.refs, before->refs);
}

/* --- the device ------------------------------------------------------------------------------- */

static int open_device(void)
{
	int fd = open(DEVICE, O_RDWR | O_CLOEXEC);

	must(fd >= 0);
	return fd;
}

static int set_up(unsigned int flags)
{
	struct nymph_setup2 setup = { .size = sizeof(setup), .flags = flags, .entries = ENTRIES };
	int fd = open_device();

	must(ioctl(fd, NYMPH_IOC_SETUP2, &setup) == 0);
	return fd;
}

static int submit(int fd, struct nymph_entry *entries, unsigned int nr)
{
	struct nymph_enter enter = {
		.size = sizeof(enter),
		.entries = (unsigned long)entries,
		.to_submit = nr,
	};

	return ioctl(fd, NYMPH_IOC_ENTER, &enter);
}

static unsigned int buffer(int fd, struct nymph_buffer arg, void **mapped)
{
	arg.size = sizeof(arg);
	must(ioctl(fd, NYMPH_IOC_BUFFER, &arg) == 0);
	if (mapped) {
		*mapped = mmap(NULL, arg.length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, arg.mmap_offset);
		must(*mapped != MAP_FAILED);
	}
	return arg.handle;
}

static void *anonymous(size_t length)
{
	void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	must(memory != MAP_FAILED);
	/* of a huge page in part, all is charged */
	madvise(memory, length, MADV_NOHUGEPAGE);
	return memory;
}

static void *shared(size_t length, int *fd)
{
	void *memory;

	*fd = memfd_create("leftovers", MFD_CLOEXEC);
	must(*fd >= 0 && ftruncate(*fd, length) == 0);
	memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	must(memory != MAP_FAILED);
	return memory;
}

/* As much as a user may lock can be locked: no charge was kept. Root has no limit. */
static void check_charges(void)
{
	struct rlimit limit;
	int fd;

	must(getrlimit(RLIMIT_MEMLOCK, &limit) == 0);
	if (geteuid() == 0 || limit.rlim_cur > 64 << 20)
		return;
	fd = set_up(0);
	/* but for this ring */
	buffer(fd, (struct nymph_buffer){ .op = NYMPH_BUFFER_ALLOC, .length = limit.rlim_cur - (256 << 10) },
	       NULL);
	close(fd);
}

/* --- work ------------------------------------------------------------------------------------- */

struct work {
	int fd, file;
	char *src, *dst;               /* LARGE each */
	char *file_memory;             /* SMALL, shared */
	char *pinned;                  /* twice SMALL */
	unsigned int ours, registered; /* buffers, SMALL each */
	unsigned int accepted;
};

/* Something of everything. */
static void submit_work(struct work *work)
{
	struct nymph_entry entries[WORK], *e = entries;
	int accepted, i;

	memset(entries, 0, sizeof(entries));
	for (i = 0; i < 2; i++) {
		*e++ = (struct nymph_entry){ .opcode = NYMPH_OP_COPY,
					     .flags = i & 1 ? NYMPH_DMA_FLAG_VERIFY_HASH : 0,
					     .length = LARGE,
					     .src = (unsigned long)work->src,
					     .dst = (unsigned long)work->dst };
		*e++ = (struct nymph_entry){ .opcode = NYMPH_OP_COPY,
					     .flags = NYMPH_DMA_FLAG_ZERO_COPY | NYMPH_DMA_FLAG_LINK,
					     .length = SMALL,
					     .src = (unsigned long)work->pinned,
					     .dst = (unsigned long)work->pinned + SMALL };
		*e++ = (struct nymph_entry){ .opcode = NYMPH_OP_COPY,
					     .length = SMALL,
					     .src_buffer = work->ours,
					     .dst_buffer = work->registered };
		*e++ = (struct nymph_entry){ .opcode = NYMPH_OP_FILL,
					     .flags = NYMPH_DMA_FLAG_BARRIER,
					     .length = SMALL,
					     .src = 5,
					     .dst = (unsigned long)work->file_memory };
		*e++ = (struct nymph_entry){ .opcode = NYMPH_OP_COMPARE,
					     .length = SMALL,
					     .src = (unsigned long)work->file_memory,
					     .dst_buffer = work->ours };
		*e++ = (struct nymph_entry){ .opcode = NYMPH_OP_HASH,
					     .length = SMALL,
					     .src_buffer = work->registered };
	}
	for (i = 0; i < WORK; i++) {
		entries[i].size = sizeof(*e);
		entries[i].cookie = i;
		entries[i].flags |= NYMPH_DMA_FLAG_RECORD;
	}
	accepted = submit(work->fd, entries, WORK);
	must(accepted == WORK);
	work->accepted += accepted;
}

static struct work start_work(void)
{
	struct work work = {
		.fd = set_up(0),
		.src = anonymous(LARGE),
		.dst = anonymous(LARGE),
		.pinned = anonymous(2 * SMALL),
	};
	struct nymph_buffer alloc = { .op = NYMPH_BUFFER_ALLOC, .length = SMALL };
	struct nymph_buffer own = { .op = NYMPH_BUFFER_REGISTER, .length = SMALL };
	void *mapped;

	own.addr = (unsigned long)anonymous(SMALL);
	work.file_memory = shared(SMALL, &work.file);
	work.ours = buffer(work.fd, alloc, &mapped);
	work.registered = buffer(work.fd, own, NULL);
	submit_work(&work);
	return work;
}

/* Collect what was accepted; every entry ends, and with nothing worse than that its memory went away. */
static void finish_work(struct work *work)
{
	struct nymph_record record;

	for (; work->accepted; work->accepted--) {
		ssize_t got;

		do
			got = read(work->fd, &record, sizeof(record));
		while (got < 0 && errno == EINTR);
		must(got == sizeof(record));
		must(record.status == 0 || record.status == -EFAULT || record.status == -EBADMSG ||
		     record.status == -ECANCELED);
	}
}

/* Something small from end to end, to see that all is well. */
static void small_work(void)
{
	char from[100] = "small", to[100];
	struct nymph_entry entry = {
		.size = sizeof(entry),
		.opcode = NYMPH_OP_COPY,
		.flags = NYMPH_DMA_FLAG_COMPLETE_SYNC | NYMPH_DMA_FLAG_VERIFY_HASH,
		.length = sizeof(from),
		.src = (unsigned long)from,
		.dst = (unsigned long)to,
	};
	int fd = set_up(0);

	must(submit(fd, &entry, 1) == 1);
	must(!memcmp(from, to, sizeof(from)));
	close(fd);
}

/* Whoever did not set the ring up is told so, and does no harm. */
static void check_foreign(int fd)
{
	struct nymph_fabric_status status;
	struct nymph_record record;

	must(ioctl(fd, NYMPH_IOC_GET_STATUS, &status) < 0 && errno == EPERM);
	must(ioctl(fd, NYMPH_IOC_RESET) < 0 && errno == EPERM);
	must(read(fd, &record, sizeof(record)) < 0 && errno == EPERM);
}

/* --- children --------------------------------------------------------------------------------- */

static int told[2]; /* a pipe: the child says that it got so far */

static void tell(void)
{
	must(write(told[1], "x", 1) == 1);
}

static void until_told(void)
{
	struct pollfd poll_fd = { .fd = told[0], .events = POLLIN };
	char byte;

	must(poll(&poll_fd, 1, PATIENCE * 1000) == 1 && read(told[0], &byte, 1) == 1);
}

static pid_t start(void (*function)(void))
{
	unsigned int seed = random();
	pid_t child = fork();

	must(child >= 0);
	if (child)
		return child;
	/* should we fail, nobody else ends it */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	srandom(seed);
	function();
	_exit(0);
}

/* Returns the wait status of a child that ends by itself, or else it's stuck. */
static int reap(pid_t child)
{
	double end = now() + PATIENCE;
	int status;

	while (now() < end) {
		pid_t got = waitpid(child, &status, WNOHANG);

		must(got >= 0);
		if (got)
			return status;
		nap(500000);
	}
	fail("process %d does not end", child);
}

static void reap_well(pid_t child)
{
	int status = reap(child);

	if (status)
		fail("the child ended with wait status %#x", status);
}

static void kill_off(pid_t child)
{
	int status;

	must(kill(child, SIGKILL) == 0);
	status = reap(child);
	/* one that failed has said why */
	must(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* --- scenes ----------------------------------------------------------------------------------- */

/* Killed while it submits, runs entries, waits for records, waits for one copy, or sleeps. */
static void work_on(void)
{
	struct nymph_enter enter = {
		.size = sizeof(enter),
		.deadline_ns = NYMPH_NO_DEADLINE,
		.max_records = 2 * ENTRIES,
		.min_records = 2 * ENTRIES,
	};
	struct work work;
	int what = random() % 5;

	if (what == 4)
		tell();
	work = start_work();
	if (what != 4)
		tell();
	switch (what) {
	case 0:
		enter.records = (unsigned long)anonymous(2 * ENTRIES * sizeof(struct nymph_record));
		ioctl(work.fd, NYMPH_IOC_ENTER, &enter);
		break;
	case 1:
		for (;;) {
			struct nymph_entry entry = {
				.size = sizeof(entry),
				.opcode = NYMPH_OP_COPY,
				.flags = NYMPH_DMA_FLAG_COMPLETE_SYNC,
				.length = LARGE,
				.src = (unsigned long)work.src,
				.dst = (unsigned long)work.dst,
			};

			submit(work.fd, &entry, 1);
		}
	case 2:
		for (;;) {
			finish_work(&work);
			submit_work(&work);
		}
	}
	for (;;)
		pause();
}

static void scene_kill(void)
{
	pid_t child = start(work_on);

	until_told();
	moment();
	kill_off(child);
}

static void work_and_leave(void)
{
	start_work();
	moment();
}

static void scene_exit(void)
{
	reap_well(start(work_and_leave));
}

static void close_it(void)
{
	struct work work = start_work();

	moment();
	if (random() % 2)
		must(ioctl(work.fd, NYMPH_IOC_RESET) == 0);
	close(work.fd);
	/* nothing writes to our memory any more, or soon nothing does; it is ours to use */
	memset(work.src, 1, LARGE);
	munmap(work.dst, LARGE);
	small_work();
}

static void scene_close(void)
{
	reap_well(start(close_it));
}

static void fork_on(void)
{
	struct work work = start_work();
	pid_t child;

	moment();
	child = fork();
	must(child >= 0);
	if (!child) {
		check_foreign(work.fd);
		/* who set it up may be gone by then */
		moment();
		check_foreign(work.fd);
		close(work.fd);
		small_work();
		_exit(0);
	}
	if (random() % 2)
		_exit(0);
	reap_well(child);
	finish_work(&work);
}

static void scene_fork(void)
{
	reap_well(start(fork_on));
}

static void exec_on(void)
{
	struct work work = start_work();
	char number[12];

	moment();
	fcntl(work.fd, F_SETFD, 0);
	snprintf(number, sizeof(number), "%d", work.fd);
	execl("/proc/self/exe", "leftovers", "inherited", number, NULL);
	fail("exec");
}

static void scene_exec(void)
{
	reap_well(start(exec_on));
}

static int pair[2];

/* A file that nobody has but the socket it is on the way in. */
static void send_file(int socket, int fd)
{
	char control[CMSG_SPACE(sizeof(fd))] = "", byte = 'x';
	struct iovec data = { &byte, 1 };
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	must(sendmsg(socket, &message, 0) == 1);
}

static int receive_file(int socket)
{
	char control[CMSG_SPACE(sizeof(int))], byte;
	struct iovec data = { &byte, 1 };
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	int fd;

	must(recvmsg(socket, &message, MSG_CMSG_CLOEXEC) == 1 && CMSG_FIRSTHDR(&message));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	return fd;
}

static void pass_it(void)
{
	struct work work = start_work();

	moment();
	send_file(pair[1], work.fd);
	tell();
	if (random() % 2)
		finish_work(&work);
}

static void scene_pass(void)
{
	pid_t child;

	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	child = start(pass_it);
	until_told();
	if (random() % 2) {
		int fd = receive_file(pair[0]);

		check_foreign(fd);
		reap_well(child);
		check_foreign(fd);
		close(fd);
	} else {
		reap_well(child);
	}
	close(pair[0]);
	close(pair[1]);
}

static void unmap_it(void)
{
	struct work work = start_work();

	moment();
	must(munmap(random() % 2 ? work.src : work.dst, LARGE / 2) == 0);
	must(munmap(work.file_memory, SMALL) == 0);
	finish_work(&work);
	small_work();
}

static void scene_unmap(void)
{
	reap_well(start(unmap_it));
}

static void truncate_it(void)
{
	struct work work = start_work();

	moment();
	must(ftruncate(work.file, random() % SMALL) == 0);
	moment();
	must(ftruncate(work.file, SMALL) == 0);
	finish_work(&work);
	small_work();
}

static void scene_truncate(void)
{
	reap_well(start(truncate_it));
}

static void remap_it(void)
{
	struct work work = start_work();
	void *place = anonymous(LARGE);

	moment();
	must(mremap(work.dst, LARGE, LARGE, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
	must(mremap(work.file_memory, SMALL, SMALL / 2, 0) == work.file_memory);
	finish_work(&work);
	small_work();
}

static void scene_remap(void)
{
	reap_well(start(remap_it));
}

/* With the file's memory, anonymous memory and what is pinned; where there is swap, most of it goes there. */
static void page_it_out(void)
{
	struct work work;
	int i;

	work = start_work();
	for (i = 0; i < 5; i++) {
		madvise(work.src, LARGE, MADV_PAGEOUT);
		madvise(work.dst, LARGE, MADV_PAGEOUT);
		madvise(work.file_memory, SMALL, MADV_PAGEOUT);
		moment();
	}
	if (random() % 2)
		finish_work(&work);
}

static void scene_pageout(void)
{
	reap_well(start(page_it_out));
}

/* Copies from memory that does not come, and what is queued behind: then the end, of three kinds. */
static void stand_still(char *never)
{
	int fd = set_up(0), what = random() % 4;
	char *memory = anonymous(2 * SMALL);
	struct nymph_entry entries[] = {
		{ .opcode = NYMPH_OP_COPY, .src = (unsigned long)never, .dst = (unsigned long)memory },
		{ .opcode = NYMPH_OP_COPY,
		  .flags = NYMPH_DMA_FLAG_ZERO_COPY,
		  .src = (unsigned long)memory,
		  .dst = (unsigned long)memory + SMALL },
		{ .opcode = NYMPH_OP_HASH, .src = (unsigned long)never },
	};
	unsigned int i;

	for (i = 0; i < 3; i++) {
		entries[i].size = sizeof(entries[i]);
		entries[i].length = 4096;
		entries[i].flags |= NYMPH_DMA_FLAG_RECORD;
	}
	if (what == 1)
		entries[0].flags |= NYMPH_DMA_FLAG_COMPLETE_SYNC;
	if (what == 2)
		entries[0].flags |= NYMPH_DMA_FLAG_ZERO_COPY; /* pins, or waits in that */
	tell();
	submit(fd, entries, 3);
	if (what == 3)
		close(fd);
	for (;;)
		pause();
}

/* Memory whose pages come when they are given to it; a file that says which are wanted. */
static char *uffd_memory(int *fd)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	char *memory = anonymous(SMALL);

	*fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	must(*fd >= 0);
	range.range.start = (unsigned long)memory;
	range.range.len = SMALL;
	must(ioctl(*fd, UFFDIO_API, &api) == 0 && ioctl(*fd, UFFDIO_REGISTER, &range) == 0);
	return memory;
}

static void stand_still_on_uffd(void)
{
	int fd;

	stand_still(uffd_memory(&fd));
}

static void scene_userfaultfd(void)
{
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	pid_t child;

	if (fd < 0)
		skip("no userfaultfd for faults in the kernel");
	close(fd);
	child = start(stand_still_on_uffd);
	until_told();
	moment();
	kill_off(child);
	small_work();
}

/* A file system with one file, "never", of which no byte ever comes. */
static void *serve_fuse(void *argument)
{
	int fd = *(int *)argument;
	static char request[1 << 17];

	while (read(fd, request, sizeof(request)) > 0) {
		struct fuse_in_header *in = (void *)request;
		struct {
			struct fuse_out_header header;
			char body[sizeof(struct fuse_entry_out) + sizeof(struct fuse_init_out)];
		} out = { .header = { .unique = in->unique } };
		struct fuse_attr file = {
			.ino = 2, .size = SMALL, .mode = S_IFREG | 0666, .nlink = 1, .blksize = 4096
		};
		struct fuse_attr root = { .ino = 1, .mode = S_IFDIR | 0777, .nlink = 2 };
		size_t length = 0;

		switch (in->opcode) {
		case FUSE_INIT: {
			struct fuse_init_in *init = (void *)(in + 1);
			struct fuse_init_out answer = {
				.major = FUSE_KERNEL_VERSION,
				.minor = init->minor,
				.max_readahead = init->max_readahead,
				.max_write = 4096,
			};

			memcpy(out.body, &answer, length = sizeof(answer));
			break;
		}
		case FUSE_LOOKUP: {
			struct fuse_entry_out answer = {
				.nodeid = 2, .entry_valid = 1000, .attr_valid = 1000, .attr = file
			};

			memcpy(out.body, &answer, length = sizeof(answer));
			break;
		}
		case FUSE_GETATTR: {
			struct fuse_attr_out answer = { .attr_valid = 1000,
							.attr = in->nodeid == 1 ? root : file };

			memcpy(out.body, &answer, length = sizeof(answer));
			break;
		}
		case FUSE_OPEN:
			length = sizeof(struct fuse_open_out);
			break;
		case FUSE_FLUSH:
		case FUSE_RELEASE:
			break;
		case FUSE_READ:
		case FUSE_INTERRUPT:
		case FUSE_FORGET:
		case FUSE_BATCH_FORGET:
			continue;
		default:
			out.header.error = -ENOSYS;
		}
		out.header.len = sizeof(out.header) + length;
		if (write(fd, &out, out.header.len) < 0 && errno != ENOENT)
			break;
	}
	return NULL;
}

static char mount_point[] = "/tmp/leftovers.XXXXXX";

static void stand_still_on_fuse(void)
{
	char path[64];
	void *memory;
	int fd;

	snprintf(path, sizeof(path), "%s/never", mount_point);
	fd = open(path, O_RDWR | O_CLOEXEC);
	must(fd >= 0);
	memory = mmap(NULL, SMALL, PROT_READ, MAP_PRIVATE, fd, 0);
	must(memory != MAP_FAILED);
	stand_still(memory);
}

/*
 * Such a fault ends when the connection does, and not before: the process is
 * gone at once all the same, and what it left goes with the connection.
 */
static void scene_fuse(void)
{
	char options[64];
	pthread_t server;
	pid_t child;
	int fd;

	if (!round_nr)
		must(mkdtemp(mount_point));
	fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		skip("no FUSE here");
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0", fd);
	if (mount("leftovers", mount_point, "fuse", 0, options))
		skip("may not mount FUSE");
	must(pthread_create(&server, NULL, serve_fuse, &fd) == 0);
	child = start(stand_still_on_fuse);
	until_told();
	moment();
	must(kill(child, SIGKILL) == 0);
	small_work();
	/* without MNT_FORCE it would wait for the answers that never come: this aborts the connection */
	must(umount2(mount_point, MNT_FORCE | MNT_DETACH) == 0);
	reap(child);
	must(pthread_join(server, NULL) == 0);
	close(fd);
}

static void hold_open(void)
{
	start_work();
	tell();
	for (;;)
		pause();
}

/* The module does not go while somebody holds it, and works as before. */
static void scene_rmmod(void)
{
	pid_t child;

	errno = EPERM;
	if (geteuid() != 0)
		skip("may not unload modules");
	child = start(hold_open);
	until_told();
	moment();
	if (syscall(SYS_delete_module, "pcie_nymph", O_NONBLOCK) == 0)
		fail("the module was unloaded");
	must(errno == EBUSY || errno == EWOULDBLOCK);
	small_work();
	kill_off(child);
}

/* Goes through a suspend, in some wait or other, and ends well. */
static void sleep_through(void)
{
	struct nymph_entry entry = { .size = sizeof(entry), .opcode = NYMPH_OP_COPY, .length = LARGE };
	struct work work = start_work();
	double end = now() + 1;
	int what = random() % 3;

	entry.src = (unsigned long)work.src;
	entry.dst = (unsigned long)work.dst;
	entry.flags = NYMPH_DMA_FLAG_COMPLETE_SYNC;
	tell();
	do {
		switch (what) {
		case 0: /* read() waits, then it is a caller who runs entries */
			finish_work(&work);
			submit_work(&work);
			break;
		case 1:
			submit(work.fd, &entry, 1);
			break;
		default: /* waits for records that do not come, until its deadline */
			finish_work(&work);
			for (;;) {
				struct nymph_record record;
				struct nymph_enter enter = {
					.size = sizeof(enter),
					.records = (unsigned long)&record,
					.max_records = 1,
					.min_records = 1,
					.deadline_ns = (__u64)(end * 1e9),
				};

				must(ioctl(work.fd, NYMPH_IOC_ENTER, &enter) < 0);
				if (errno == ETIME)
					break;
				must(errno == EINTR); /* as any wait with a deadline may say */
			}
		}
	} while (now() < end);
	finish_work(&work);
}

static void scene_suspend(void)
{
	static const char *const modes[] = { "mem", "freeze" };
	pid_t children[3];
	int i, fd, tries;

	if (access("/sys/power/pm_test", W_OK))
		skip("no /sys/power/pm_test");
	write_text("/sys/power/pm_test", "freezer");
	write_text("/sys/module/suspend/parameters/pm_test_delay", "0");
	for (i = 0; i < 3; i++) {
		children[i] = start(sleep_through);
		until_told();
	}
	for (tries = 0; tries < 3; tries++) {
		const char *mode = modes[tries % 2];

		moment();
		fd = open("/sys/power/state", O_WRONLY | O_CLOEXEC);
		must(fd >= 0);
		if (write(fd, mode, strlen(mode)) < 0)
			must(errno == EINVAL && tries % 2 == 0); /* a kernel may not know "mem" */
		close(fd);
	}
	for (i = 0; i < 3; i++)
		reap_well(children[i]);
	write_text("/sys/power/pm_test", "none");
}

/* --- an executor that is killed ---------------------------------------------------------------- */

#define TAKEN_OVER (SMALL - 12345) /* some chunks, and a rest */

static int taken_over;
static struct nymph_entry taken_entry;

static int copy_and_wait(void *unused)
{
	submit(taken_over, &taken_entry, 1);
	return 0;
}

/* Gives the memory the page that it wants: of @from, or zeros. */
static void give_page(int uffd, unsigned long at, const char *from)
{
	struct uffdio_copy copy = { .dst = at, .src = (unsigned long)from, .len = 4096 };
	struct uffdio_zeropage zeros = { .range = { .start = at, .len = 4096 } };

	must((from ? ioctl(uffd, UFFDIO_COPY, &copy) : ioctl(uffd, UFFDIO_ZEROPAGE, &zeros)) == 0 ||
	     errno == EEXIST);
}

/*
 * Somebody else with the same memory copies, and is killed in the middle of a chunk, when it waits for a page
 * of the source or of the destination. The ring's worker does the rest, and nothing is sent or hashed twice.
 */
static void take_over(void)
{
	static char stack[65536] __attribute__((aligned(16)));
	static struct nymph_record record;
	struct nymph_setup2 setup = { .size = sizeof(setup), .entries = 1 };
	struct nymph_enter enter = {
		.size = sizeof(enter),
		.records = (unsigned long)&record,
		.max_records = 1,
		.min_records = 1,
		.deadline_ns = NYMPH_NO_DEADLINE,
	};
	bool slow_source = random() & 1, killed = false;
	char *data = anonymous(SMALL), *src = data, *dst, *slow;
	int uffd, kill_at = random() % 100, status = 0;
	size_t i;
	pid_t child;

	if (random() & 1)
		strcpy((char *)setup.engine, "cpu");
	for (i = 0; i < SMALL; i++)
		data[i] = random();
	slow = uffd_memory(&uffd);
	if (slow_source)
		src = slow;
	dst = slow_source ? anonymous(SMALL) : slow;
	taken_over = open_device();
	must(ioctl(taken_over, NYMPH_IOC_SETUP2, &setup) == 0);
	taken_entry = (struct nymph_entry){
		.size = sizeof(taken_entry),
		.opcode = NYMPH_OP_COPY,
		.flags = NYMPH_DMA_FLAG_COMPLETE_SYNC | NYMPH_DMA_FLAG_VERIFY_HASH | NYMPH_DMA_FLAG_RECORD,
		.length = TAKEN_OVER,
		.src = (unsigned long)src + 77,
		.dst = (unsigned long)dst + 4000,
	};
	child = clone(copy_and_wait, stack + sizeof(stack), CLONE_VM | CLONE_FILES | SIGCHLD, NULL);
	must(child > 0);
	for (;;) {
		struct pollfd fds[] = { { .fd = taken_over, .events = POLLIN },
					{ .fd = uffd, .events = POLLIN } };
		struct uffd_msg message;
		unsigned long page;

		must(poll(fds, 2, PATIENCE * 1000) > 0);
		if (fds[0].revents)
			break;
		if (read(uffd, &message, sizeof(message)) != sizeof(message))
			continue;
		if (!killed && !kill_at--) {
			killed = true;
			kill_off(child);
		}
		page = message.arg.pagefault.address & ~4095UL;
		give_page(uffd, page, slow_source ? data + (page - (unsigned long)slow) : NULL);
	}
	must(ioctl(taken_over, NYMPH_IOC_ENTER, &enter) == 0 && enter.reaped == 1);
	if (record.status || record.bytes_done != TAKEN_OVER)
		fail("status %d, %llu bytes done", record.status, (unsigned long long)record.bytes_done);
	must(!memcmp(record.src_digest, record.dst_digest, sizeof(record.src_digest)));
	must(!memcmp(dst + 4000, data + 77, TAKEN_OVER));
	if (!killed)
		status = reap(child);
	must(!status);
}

static void scene_takeover(void)
{
	reap_well(start(take_over));
}

static const struct {
	const char *name;
	void (*play)(void);
} scenes[] = {
	{ "kill", scene_kill },       { "exit", scene_exit },         { "close", scene_close },
	{ "fork", scene_fork },       { "exec", scene_exec },         { "pass", scene_pass },
	{ "unmap", scene_unmap },     { "truncate", scene_truncate }, { "remap", scene_remap },
	{ "pageout", scene_pageout }, { "fuse", scene_fuse },         { "userfaultfd", scene_userfaultfd },
	{ "rmmod", scene_rmmod },     { "suspend", scene_suspend },   { "takeover", scene_takeover },
};

/* What the kernel itself cannot give back to anybody. */
static long unreclaimable_kib(void)
{
	return find_number("/proc/meminfo", "SUnreclaim:") + find_number("/proc/meminfo", "KernelStack:") +
	       find_number("/proc/meminfo", "Percpu:");
}

/* KASAN keeps what was freed for a while; such a kernel has kmemleak to tell what is lost. */
static bool keeps_what_is_freed(void)
{
	FILE *file = fopen("/proc/kallsyms", "r");
	char line[512];
	bool found = false;

	while (file && !found && fgets(line, sizeof(line), file))
		found = strstr(line, " kasan_quarantine_put") != NULL;
	if (file)
		fclose(file);
	return found;
}

static void play(void (*scene_of)(void), int rounds)
{
	struct state before;
	long kib = 0;

	small_work();
	check_charges();
	before = look_at_rest();
	must(!before.stuck);
	for (round_nr = 0; round_nr < rounds; round_nr++) {
		scene_of();
		all_is_as(&before);
		if (round_nr % 16 == 0)
			check_charges();
		if (round_nr == 9)
			kib = unreclaimable_kib();
	}
	check_charges();
	all_is_as(&before);
	/* caches come and go, a bounce buffer left in every round would be far more */
	if (rounds > 20 && unreclaimable_kib() - kib > 24 * 1024 + rounds * 16 && !keeps_what_is_freed())
		fail("the kernel has %ld KiB more than after ten rounds", unreclaimable_kib() - kib);
}

int main(int argc, char **argv)
{
	unsigned int i;

	if (argc != 3)
		return 2;
	scene = argv[1];
	if (!strcmp(scene, "inherited")) {
		check_foreign(atoi(argv[2]));
		small_work();
		return 0;
	}
	srandom(atoi(argv[2]));
	must(pipe2(told, O_CLOEXEC) == 0);
	for (i = 0; i < sizeof(scenes) / sizeof(*scenes); i++) {
		if (strcmp(scene, scenes[i].name))
			continue;
		play(scenes[i].play, atoi(argv[2]));
		return 0;
	}
	fprintf(stderr, "no scene %s\n", scene);
	return 2;
}
