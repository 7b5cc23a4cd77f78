// Unix sockets that servers have left behind (`--host /run/harp.sock`).
#pragma once

#include <string>
#include <vector>

namespace harp::server {

/// Removes the sockets at which nobody listens. A server cannot listen at a path that exists, and llama.cpp's leaves its own behind.
/// @param hosts values of --host; those that do not end in ".sock" are addresses and left alone, and so is what is no socket
void remove_unused_sockets(const std::vector<std::string> & hosts);

}  // namespace harp::server
