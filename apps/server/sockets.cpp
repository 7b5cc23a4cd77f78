#include "server/sockets.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

namespace harp::server {

namespace {

/// Whether the kernel says so; where it cannot be known (no permission, ...) somebody may.
bool nobody_listens(const std::string & path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof(address.sun_path)) return false;
    std::memcpy(address.sun_path, path.data(), path.size());
    // non-blocking: a busy server's queue may be full
    const int probe = ::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (probe < 0) return false;
    const bool is_refused =
        ::connect(probe, reinterpret_cast<const sockaddr *>(&address), sizeof(address)) != 0 && errno == ECONNREFUSED;
    ::close(probe);
    return is_refused;
}

}  // namespace

void remove_unused_sockets(const std::vector<std::string> & hosts) {
    for (const std::string & host : hosts) {
        std::error_code ignored;
        if (host.ends_with(".sock") && std::filesystem::is_socket(host, ignored) && nobody_listens(host)) {
            std::filesystem::remove(host, ignored);
        }
    }
}

}  // namespace harp::server
