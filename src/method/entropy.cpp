// Entropy of a row of logits, vectorised: one pass for the two greatest logits, one for the two sums.
//
// With m the maximum, S = sum exp(x - m) and T = sum (x - m) exp(x - m), the entropy is log2 S - (T / S) /
// ln 2. This needs no second exponential and no logarithm per token.
#include "method/entropy.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns about its own AVX-512 intrinsics (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// Highway compiles this file once for each instruction set and picks one when the program runs.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "method/entropy.cpp"
#include "hwy/foreach_target.h"
// after foreach_target.h, as Highway demands
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace harp::method::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using FloatVec = hn::Vec<FloatTag>;
#if HWY_TARGET == HWY_SCALAR
using DoubleTag = hn::Rebind<double, FloatTag>;
#else
using DoubleTag = hn::Repartition<double, FloatTag>;
#endif
using DoubleVec = hn::Vec<DoubleTag>;

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// A token whose logit is further below the maximum counts as probability 0: 262144 such tokens together would
// contribute less than 1e-27 bits. Above this bound no term is a denormal number, which would be slow.
constexpr float smallest_exponent = -80.0F;

// A finite number whose exponential is exactly 0; with -infinity, 0 * -infinity would be NaN.
constexpr float exponent_of_zero = -200.0F;

// Logits are read four vectors at a time: enough independent work to hide latencies.
constexpr size_t vectors_per_block = 4;

// Calls f(block) for all logits. The last block is padded with -infinity, tokens of probability 0.
template <class F>
HWY_INLINE void for_each_block(const float * logits, size_t n, F f) {
    const FloatTag d;
    const size_t size = vectors_per_block * hn::Lanes(d);
    size_t i = 0;
    for (; i + size <= n; i += size) f(logits + i);
    if (i == n) return;
    HWY_ALIGN float tail[vectors_per_block * hn::MaxLanes(d)];
    for (size_t k = 0; k < size; ++k) tail[k] = i + k < n ? logits[i + k] : minus_infinity;
    f(tail);
}

struct TopTwo {
    float first = minus_infinity;
    float second = minus_infinity;  // equal to `first` in a tie
};

// The two greatest of each lane, then of all lanes together.
TopTwo top_two(const float * logits, size_t n) {
    const FloatTag d;
    const size_t lanes = hn::Lanes(d);
    FloatVec first = hn::Set(d, minus_infinity);
    FloatVec second = first;
    for_each_block(logits, n, [&](const float * x) HWY_ATTR {
        const FloatVec a = hn::LoadU(d, x);
        const FloatVec b = hn::LoadU(d, x + lanes);
        const FloatVec e = hn::LoadU(d, x + 2 * lanes);
        const FloatVec f = hn::LoadU(d, x + 3 * lanes);
        const FloatVec high = hn::Max(a, b);
        const FloatVec other_high = hn::Max(e, f);
        const FloatVec best = hn::Max(high, other_high);
        const FloatVec next = hn::Max(hn::Min(high, other_high), hn::Max(hn::Min(a, b), hn::Min(e, f)));
        second = hn::Max(hn::Max(second, next), hn::Min(first, best));
        first = hn::Max(first, best);
    });
    HWY_ALIGN float firsts[hn::MaxLanes(d)];
    HWY_ALIGN float seconds[hn::MaxLanes(d)];
    hn::Store(first, d, firsts);
    hn::Store(second, d, seconds);
    TopTwo top;
    for (size_t k = 0; k < lanes; ++k) {
        top.second = std::max({top.second, std::min(top.first, firsts[k]), seconds[k]});
        top.first = std::max(top.first, firsts[k]);
    }
    return top;
}

// One vector's terms of S and T.
HWY_INLINE void terms(FloatVec logit, FloatVec max, FloatVec & s, FloatVec & t) {
    const FloatTag d;
    const FloatVec difference = hn::Sub(logit, max);
    // A NaN difference is not below the cutoff and reaches T, whatever Max and Exp do with it. So do +infinity and
    // a row of -infinity, which give NaN differences.
    const auto negligible = hn::Lt(difference, hn::Set(d, smallest_exponent));
    const FloatVec x = hn::IfThenElse(negligible, hn::Set(d, exponent_of_zero), difference);
    s = hn::Exp(d, x);
    t = hn::Mul(x, s);
}

// Adds a vector of floats to a sum kept in double, half by half.
HWY_INLINE void add(FloatVec v, DoubleVec & low, DoubleVec & high) {
    const DoubleTag d;
#if HWY_TARGET == HWY_SCALAR
    low = hn::Add(low, hn::PromoteTo(d, v));
    (void)high;
#else
    const hn::Half<FloatTag> half;
    low = hn::Add(low, hn::PromoteTo(d, hn::LowerHalf(half, v)));
    high = hn::Add(high, hn::PromoteTo(d, hn::UpperHalf(half, v)));
#endif
}

HWY_INLINE double total(DoubleVec low, DoubleVec high) {
    const DoubleTag d;
    return hn::GetLane(hn::SumOfLanes(d, hn::Add(low, high)));
}

SoftmaxSummary summary(const float * logits, size_t n) {
    const FloatTag d;
    const size_t lanes = hn::Lanes(d);
    const TopTwo top = top_two(logits, n);
    const float largest = top.first;
    const FloatVec max = hn::Set(d, largest);
    DoubleVec s_low = hn::Zero(DoubleTag());
    DoubleVec s_high = s_low;
    DoubleVec t_low = s_low;
    DoubleVec t_high = s_low;
    // Four floats are added in pairs before conversion to double. Where they are equal (uniform rows) this is
    // exact.
    for_each_block(logits, n, [&](const float * x) HWY_ATTR {
        FloatVec s0, s1, s2, s3, t0, t1, t2, t3;
        terms(hn::LoadU(d, x), max, s0, t0);
        terms(hn::LoadU(d, x + lanes), max, s1, t1);
        terms(hn::LoadU(d, x + 2 * lanes), max, s2, t2);
        terms(hn::LoadU(d, x + 3 * lanes), max, s3, t3);
        add(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)), s_low, s_high);
        add(hn::Add(hn::Add(t0, t1), hn::Add(t2, t3)), t_low, t_high);
    });
    const double s = total(s_low, s_high);
    const double entropy_bits = std::log2(s) - total(t_low, t_high) / s * std::numbers::log2e;
    const double ratio = std::exp(static_cast<double>(top.second) - static_cast<double>(largest));
    return {entropy_bits, static_cast<double>(largest) + std::log(s), largest, ratio};
}

}  // namespace
}  // namespace harp::method::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace harp::method {

HWY_EXPORT(summary);

SoftmaxSummary summarise_softmax(std::span<const float> logits) noexcept {
    assert(!logits.empty());
    return HWY_DYNAMIC_DISPATCH(summary)(logits.data(), logits.size());
}

}  // namespace harp::method
#endif
