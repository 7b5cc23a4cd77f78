// Attention in registers of 512 bits; compiled with the flags of AVX-512: nothing here may be called without them.
#include "kernels/attention.h"

#if defined(__x86_64__)

#include "kernels/attend.h"

namespace harp::kernels {

void attend_avx512(const AttentionPart & part) noexcept {
    Attending<2>(part).run();
}

}  // namespace harp::kernels

#else

namespace harp::kernels {

void attend_avx512(const AttentionPart & /*part*/) noexcept {}

}  // namespace harp::kernels

#endif
