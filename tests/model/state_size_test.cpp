// The size of a state equals the bytes that saving it gives, and asking for it copies nothing.
#include <gtest/gtest.h>

#include "support/text.h"

namespace harp::testing {
namespace {

struct StateSizeCase {
    const char * name;
    std::filesystem::path (*path)();
    bool is_unified;
    bool is_on;
};

class StateSize : public ::testing::TestWithParam<StateSizeCase> {
  protected:
    void SetUp() override {
        model_ = load(GetParam().path());
        if (model_ == nullptr) GTEST_SKIP() << "model not there: " << GetParam().path().string();
    }
    static void expect_sizes(ForwardPass & p) {
        EXPECT_EQ(p.state_size(), p.state_get().size());
        for (const llama_seq_id s : {0, 1}) {
            for (const llama_state_seq_flags flags : {0U, 1U * LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY}) {
                SCOPED_TRACE("sequence " + std::to_string(s) + ", flags " + std::to_string(flags));
                const size_t size = p.state_seq_size(s, flags);
                EXPECT_EQ(size, p.state_seq_get(s, flags).size());
                EXPECT_EQ(size, p.state_seq_size(s, flags)) << "asked again";
            }
        }
    }
    llama_model * model_ = nullptr;
};

TEST_P(StateSize, IsThatOfTheBytesThatAreSaved) {
    llama_context_params params = windowed_context(512, 2);
    params.kv_unified = GetParam().is_unified;
    Options options;
    options.threshold = 0;
    options.reframings = 2;
    ForwardPass p(*model_, params, GetParam().is_on ? std::optional(options) : std::nullopt);
    expect_sizes(p);  // empty
    read(p, 0, 9);
    expect_sizes(p);  // the twins hold nothing yet
    (void)go_on(p, 9, 12);
    expect_sizes(p);
    (void)go_on(p, 0, 4, 1);
    read(p, 12, 30);
    expect_sizes(p);  // rows are pending for the twins
    ASSERT_TRUE(p.memory_seq_rm(1, -1, -1));
    expect_sizes(p);
}

INSTANTIATE_TEST_SUITE_P(Models, StateSize,
                         ::testing::Values(StateSizeCase{"Streams", stories260k, false, true},
                                           StateSizeCase{"Unified", stories260k, true, true},
                                           StateSizeCase{"Off", stories260k, false, false},
                                           StateSizeCase{"Windowed", random_windowed, false, true},
                                           StateSizeCase{"Recurrent", random_mamba, false, true},
                                           StateSizeCase{"Hybrid", random_hybrid, false, true}),
                         [](const auto & param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace harp::testing
