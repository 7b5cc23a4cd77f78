#include "server/shutdown.h"

#include <semaphore.h>

#include <cerrno>
#include <csignal>
#include <utility>

namespace harp::server {

namespace {

/// A semaphore that a signal handler may post. (std::counting_semaphore does not promise that it may.)
class Semaphore {
  public:
    Semaphore() { sem_init(&semaphore_, /*pshared=*/0, 0); }
    void post() noexcept { sem_post(&semaphore_); }
    void wait() noexcept {
        while (sem_wait(&semaphore_) != 0 && errno == EINTR) {
        }
    }

  private:
    sem_t semaphore_{};
};

Semaphore requested;

}  // namespace

ShutdownThread::ShutdownThread(std::function<void(int)> shut_down)
    : thread_([this, shut_down = std::move(shut_down)] {
          requested.wait();
          if (is_needed_) shut_down(SIGINT);
      }) {}

ShutdownThread::~ShutdownThread() {
    is_needed_ = false;
    requested.post();
    thread_.join();
}

void request_shutdown() noexcept {
    requested.post();
}

}  // namespace harp::server
