// Ctrl-C: the first asks the current answer to stop, a second within it ends the program.
#pragma once

#include <atomic>

namespace harp::cli {

/// Set by SIGINT and SIGTERM. Loops read it; chat clears it.
extern std::atomic<bool> interrupt_requested;

void install_interrupt_handlers();

/// For llama.cpp's abort callback: stops inside a long decode.
bool abort_if_interrupted(void * unused);

}  // namespace harp::cli
