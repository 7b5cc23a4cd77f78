#include "interrupt.h"

#include <csignal>
#include <cstdlib>

namespace harp::cli {

std::atomic<bool> interrupt_requested = false;

namespace {

void on_signal(int signal) {
    if (interrupt_requested.exchange(true)) std::_Exit(128 + signal);
}

}  // namespace

void install_interrupt_handlers() {
    struct sigaction action = {};
    action.sa_handler = on_signal;
    sigaction(SIGINT, &action, nullptr);  // without SA_RESTART: a blocked read of input returns
    sigaction(SIGTERM, &action, nullptr);
    // a reader that closes its end is an error of the write, with a message, not a silent death
    std::signal(SIGPIPE, SIG_IGN);
}

bool abort_if_interrupted(void * /*unused*/) {
    return interrupt_requested.load(std::memory_order_relaxed);
}

}  // namespace harp::cli
