// Attention in registers of 512 bits. Compiled with the flags of AVX-512: call nothing here on a processor without it.
#include "kernels/attention.h"

#if defined(__x86_64__)

#include "kernels/attend.h"

namespace harp::kernels {

void attend_avx512(const AttentionPart & part) noexcept {
    Attending<16>(part).run();
}

}  // namespace harp::kernels

#else

namespace harp::kernels {

void attend_avx512(const AttentionPart & /*part*/) noexcept {}

}  // namespace harp::kernels

#endif
