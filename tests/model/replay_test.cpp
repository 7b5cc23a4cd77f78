// A sequence in any company gets what it gets alone: random calls with fixed seeds (support/company.h), replayed one sequence
// after the other. HARP_REPLAY_SEEDS=FIRST:COUNT tries other seeds.
#include "support/company.h"

namespace harp::testing {
namespace {

class Replay : public ::testing::TestWithParam<ReplayCase> {};

TEST_P(Replay, ASequenceGetsInCompanyWhatItGetsAlone) {
    HARP_REQUIRE_MODEL(model, GetParam().model());
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);  // failures are expected here
    size_t n_compared = 0;
    const auto [first, count] = seeds(GetParam().n_seeds);
    for (unsigned seed = first; seed < first + count && !HasFailure(); ++seed) {
        SCOPED_TRACE("HARP_REPLAY_SEEDS=" + std::to_string(seed) + ":1");
        Company company(model, GetParam(), seed);
        company.run(45);
        n_compared += company.n_compared();
    }
    EXPECT_GE(n_compared, 20 * count);
}

INSTANTIATE_TEST_SUITE_P(Models, Replay,
                         ::testing::Values(ReplayCase{"Stories", stories260k, GGML_TYPE_F32, LONG_TOLERANCE, 12},
                                           ReplayCase{"Half", stories260k, GGML_TYPE_F16, 0.1, 8},
                                           ReplayCase{"Mixture", random_mixture, GGML_TYPE_F32, LONG_TOLERANCE, 5},
                                           ReplayCase{"Recurrent", random_mamba, GGML_TYPE_F32, LONG_TOLERANCE, 16},
                                           ReplayCase{"Hybrid", random_hybrid, GGML_TYPE_F32, LONG_TOLERANCE, 8},
                                           ReplayCase{"Windowed", random_windowed, GGML_TYPE_F32, 0.01, 12}),
                         [](const auto & param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace harp::testing
