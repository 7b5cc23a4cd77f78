#include "flags/captured_stderr.h"

#include <unistd.h>

#include <array>
#include <cstdlib>
#include <utility>

#include "flags/terminal.h"

namespace harp::cli {

namespace {

CapturedStderr * active = nullptr;

void release(CapturedStderr & captured) {
    write_err(captured.take());
}

void release_at_exit() {
    if (active != nullptr) release(*active);
}

}  // namespace

CapturedStderr::CapturedStderr() : file_(std::tmpfile()) {
    if (file_ == nullptr) return;  // without room for temporary files nothing is captured
    std::fflush(stderr);
    stderr_ = dup(STDERR_FILENO);
    dup2(fileno(file_), STDERR_FILENO);
    active = this;
    static const int registered = std::atexit(release_at_exit);
    (void)registered;
}

CapturedStderr::~CapturedStderr() {
    release(*this);
}

std::string CapturedStderr::take() {
    std::string text;
    if (file_ == nullptr) return text;
    std::fflush(stderr);
    std::rewind(file_);
    std::array<char, 4096> buffer{};
    while (const size_t n = std::fread(buffer.data(), 1, buffer.size(), file_)) text.append(buffer.data(), n);
    dup2(stderr_, STDERR_FILENO);
    close(stderr_);
    std::fclose(std::exchange(file_, nullptr));
    active = nullptr;
    return text;
}

}  // namespace harp::cli
