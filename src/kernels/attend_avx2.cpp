// Attention in registers of 256 bits. Compiled with -mavx2 -mfma -mf16c: call nothing here on a processor without them.
#include "kernels/attention.h"

#if defined(__x86_64__)

#include "kernels/attend.h"

namespace harp::kernels {

void attend_avx2(const AttentionPart & part) noexcept {
    Attending<8>(part).run();
}

}  // namespace harp::kernels

#else

namespace harp::kernels {

void attend_avx2(const AttentionPart & /*part*/) noexcept {}

}  // namespace harp::kernels

#endif
