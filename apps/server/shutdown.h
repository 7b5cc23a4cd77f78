// Ends the server outside the signal handler that asks for it, because ending it takes locks that the interrupted
// thread may hold.
//
// patches/server-signal-thread.patch calls this.
#pragma once

#include <atomic>
#include <functional>
#include <thread>

namespace harp::server {

/// While it exists, request_shutdown() makes its thread call a function. Only one can exist at a time.
class ShutdownThread {
  public:
    explicit ShutdownThread(std::function<void(int)> shut_down);
    /// Waits for a call in progress.
    ~ShutdownThread();
    ShutdownThread(const ShutdownThread &) = delete;
    ShutdownThread & operator=(const ShutdownThread &) = delete;

  private:
    std::atomic<bool> is_needed_{true};
    std::thread thread_;
};

/// For signal handlers: async-signal-safe. No-op without a ShutdownThread.
void request_shutdown() noexcept;

}  // namespace harp::server
