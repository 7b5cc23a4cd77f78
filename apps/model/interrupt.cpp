#include "model/interrupt.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "harp/error.h"

namespace harp::cli {

std::atomic<bool> interrupt_requested = false;

namespace {

// Holds a byte while an interrupt is requested. poll() waits for it; a flag could be set just before the wait and be
// missed.
std::array<int, 2> interrupt_pipe = {-1, -1};
std::atomic<bool> termination_requested = false;  // by SIGTERM, which, unlike Ctrl-C, also ends a conversation

void on_signal(int signal) {
    if (signal == SIGTERM) termination_requested = true;
    if (interrupt_requested.exchange(true)) std::_Exit(128 + signal);
    const int saved = errno;
    (void)!write(interrupt_pipe[1], "", 1);
    errno = saved;
}

/// Opens standard streams that the program was started without, so that no pipe or file takes their place. Nothing can
/// be read from them, or written.
void open_missing_streams() {
    for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
        if (fcntl(descriptor, F_GETFD) < 0 && errno == EBADF) (void)!open("/dev/null", O_RDONLY);
    }
}

}  // namespace

void install_interrupt_handlers() {
    open_missing_streams();
    if (pipe2(interrupt_pipe.data(), O_CLOEXEC | O_NONBLOCK) != 0)
        throw Error(ErrorCode::io, std::string("no pipe for Ctrl-C: ") + std::strerror(errno));
    struct sigaction action = {};
    action.sa_handler = on_signal;
    sigaction(SIGINT, &action, nullptr);  // without SA_RESTART, so that a blocked read of input returns
    sigaction(SIGTERM, &action, nullptr);
    // if the reader of a pipe closes it, the write fails with a message instead of the process dying silently
    std::signal(SIGPIPE, SIG_IGN);
}

bool clear_interrupt() {
    if (termination_requested) throw Error(ErrorCode::aborted, "terminated");
    if (!interrupt_requested) return false;
    char byte = 0;
    while (read(interrupt_pipe[0], &byte, 1) == 1) {
    }
    interrupt_requested = false;
    return true;
}

void stop_interrupted() {
    throw Error(ErrorCode::aborted, "interrupted");
}

bool wait_for_input(int descriptor) {
    std::array<pollfd, 2> waited = {{{interrupt_pipe[0], POLLIN, 0}, {descriptor, POLLIN, 0}}};
    while (poll(waited.data(), waited.size(), -1) < 0) {
        if (errno != EINTR) throw Error(ErrorCode::io, std::string("cannot wait for input: ") + std::strerror(errno));
    }
    return waited[0].revents == 0;
}

bool abort_if_interrupted(void * /*unused*/) {
    return interrupt_requested.load(std::memory_order_relaxed);
}

}  // namespace harp::cli
