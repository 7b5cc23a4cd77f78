// Lets code written for llama.h and compiled with harp/drop_in.h (llama.cpp's samplers, for example) see a ForwardPass.
#pragma once

#include "harp/forward_pass.h"

namespace harp {

/// While it lives, the calls of harp.h on `pass.context()` go to `pass`. Neither owns the other; `pass` must not be moved.
class ScopedRegistration {
  public:
    explicit ScopedRegistration(ForwardPass & pass);
    ~ScopedRegistration();
    ScopedRegistration(const ScopedRegistration &) = delete;
    ScopedRegistration & operator=(const ScopedRegistration &) = delete;

  private:
    llama_context * context_;
};

}  // namespace harp
