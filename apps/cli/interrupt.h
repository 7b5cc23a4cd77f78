// Ctrl-C: the first asks the current answer to stop, a second within it ends the program.
#pragma once

#include <atomic>

namespace harp::cli {

/// Set by SIGINT and SIGTERM. Loops read it.
extern std::atomic<bool> interrupt_requested;

void install_interrupt_handlers();

/// Forgets the interrupt, when it has been answered. @return whether there was one
bool clear_interrupt();

/// Waits until `descriptor` can be read or an interrupt is requested, whichever comes first.
/// @return false if it was the interrupt
bool wait_for_input(int descriptor);

/// For llama.cpp's abort callback: stops inside a long decode.
bool abort_if_interrupted(void * unused);

}  // namespace harp::cli
