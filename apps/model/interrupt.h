// Ctrl-C: the first one asks the current answer to stop, a second one before it has stopped ends the program.
#pragma once

#include <atomic>

namespace harp::cli {

/// Set by SIGINT and SIGTERM, read by loops.
extern std::atomic<bool> interrupt_requested;

void install_interrupt_handlers();

/// Forgets the interrupt once it was handled. @return whether there was one  @throws Error{aborted} if it was SIGTERM
bool clear_interrupt();

/// @throws Error{aborted}
[[noreturn]] void stop_interrupted();

/// Waits until `descriptor` can be read or an interrupt is requested, whichever comes first.
/// @return false if it was the interrupt
bool wait_for_input(int descriptor);

/// For llama.cpp's abort callback: stops in the middle of a long decode.
bool abort_if_interrupted(void * unused);

}  // namespace harp::cli
