// Processes forked from one that has computed. In the child only the forking thread exists. Threads that it would wait
// for are therefore ended before the fork, and started again after it where they are needed.
#include <pthread.h>

#include <atomic>

#ifdef HARP_OPENMP
#include <omp.h>
#endif

#include "engine.h"
#include "ggml-backend.h"
#include "log.h"

namespace harp::python {

namespace {

std::atomic<bool> is_forked = false;  // this process was forked after the module was loaded

/// llama.cpp's CPU back end computes with OpenMP, and the child's next parallel region would wait forever for its
/// threads; so would the logger. Pausing the forking thread's own OpenMP threads is enough, since the child continues
/// with this thread only.
void before_fork() {
    loading_mutex().lock();  // the child has no other thread that would unlock it
#ifdef HARP_OPENMP
    (void)omp_pause_resource_all(omp_pause_hard);
#endif
    common_log_pause(common_log_main());
}

void after_fork() {
    loading_mutex().unlock();
    common_log_resume(common_log_main());
}

void after_fork_in_child() {
    is_forked = true;
    after_fork();
}

}  // namespace

std::mutex & loading_mutex() {
    static std::mutex mutex;
    return mutex;
}

void watch_forks() {
    pthread_atfork(before_fork, after_fork, after_fork_in_child);
}

void refuse_shared_devices() {
    if (!is_forked) return;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        const auto type = ggml_backend_dev_type(device);
        if (type == GGML_BACKEND_DEVICE_TYPE_CPU || type == GGML_BACKEND_DEVICE_TYPE_ACCEL) continue;
        throw Error(ErrorCode::unsupported_call,
                    std::string("this process was forked, and a forked process cannot use the device ") +
                        ggml_backend_dev_name(device) +
                        "; start processes by multiprocessing's 'spawn', and load the model in each");
    }
}

}  // namespace harp::python
