// Attention in registers of 256 bits; compiled with -mavx2 -mfma -mf16c: nothing here may be called without them.
#include "kernels/attention.h"

#if defined(__x86_64__)

#include "kernels/attend.h"

namespace harp::kernels {

void attend_avx2(const AttentionPart & part) noexcept {
    Attending<1>(part).run();
}

}  // namespace harp::kernels

#else

namespace harp::kernels {

void attend_avx2(const AttentionPart & /*part*/) noexcept {}

}  // namespace harp::kernels

#endif
