// The size of a state is computed without building the state: otherwise a long prompt would be in memory twice.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <new>

#include "harp/harp.h"
#include "support/models.h"

namespace {

thread_local size_t largest_allocation = 0;  // in bytes, since it was last set to 0

}  // namespace

// NOLINTBEGIN(cppcoreguidelines-no-malloc,misc-new-delete-overloads): the test's allocator
void * operator new(size_t size) {
    largest_allocation = std::max(largest_allocation, size);
    if (void * memory = std::malloc(std::max<size_t>(size, 1))) return memory;
    throw std::bad_alloc();
}
void operator delete(void * memory) noexcept {
    std::free(memory);
}
void operator delete(void * memory, size_t /*size*/) noexcept {
    std::free(memory);
}
// NOLINTEND(cppcoreguidelines-no-malloc,misc-new-delete-overloads)

namespace harp::testing {
namespace {

TEST(StateSize, IsCountedAndRight) {
    HARP_REQUIRE_MODEL(model, stories260k());
    llama_context * context = harp_init_from_model(&model, small_context(256, 2));
    ASSERT_NE(context, nullptr) << harp_last_error();
    std::vector<llama_token> tokens(100, 300);
    ASSERT_EQ(harp_decode(context, llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size()))), 0);

    largest_allocation = 0;
    const size_t all = harp_state_get_size(context);
    EXPECT_LT(largest_allocation, all / 4);
    std::vector<uint8_t> state(all);
    EXPECT_EQ(harp_state_get_data(context, state.data(), state.size()), all);

    for (const llama_state_seq_flags flags : {0U, 1U}) {  // whole, and LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        largest_allocation = 0;
        const size_t one = harp_state_seq_get_size_ext(context, 0, flags);
        const size_t largest = largest_allocation;
        ASSERT_GT(one, 0U);
        EXPECT_LT(largest, one / 4) << "flags " << flags;
        state.resize(one);
        EXPECT_EQ(harp_state_seq_get_data_ext(context, state.data(), state.size(), 0, flags), one);
    }
    harp_free(context);
}

}  // namespace
}  // namespace harp::testing
