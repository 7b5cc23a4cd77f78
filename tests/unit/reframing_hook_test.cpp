// The hook on a graph of three nodes, evaluated by ggml's scheduler as llama.cpp evaluates its own.
#include "forward/reframing_hook.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-cpp.h"
#include "ggml.h"

namespace harp::forward {
namespace {

constexpr int64_t n_embd = 8;
constexpr int64_t n_vocab = 16;

float table_value(llama_token token, int64_t coordinate) {
    return 0.1F + static_cast<float>(token) + static_cast<float>(coordinate) / 7.0F;
}

std::vector<float> table_row(llama_token token) {
    std::vector<float> row;
    for (int64_t i = 0; i < n_embd; ++i) row.push_back(table_value(token, i));
    return row;
}

struct GraphNames {
    const char * table = "token_embd.weight";
    const char * input = "inp_tokens";
};

/// tokens -> GET_ROWS -> x 2 -> result; the result shows what the layers behind the look-up got, doubled.
class Graph {
  public:
    explicit Graph(GraphNames names = {}) : names_(names) {
        backend_.reset(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
        ggml_backend_t backends[] = {backend_.get()};
        scheduler_.reset(ggml_backend_sched_new(backends, nullptr, 1, 64, /*parallel=*/false, /*op_offload=*/false));
    }

    void set_callback(const llama_context_params & params) {
        ggml_backend_sched_set_eval_callback(scheduler_.get(), params.cb_eval, params.cb_eval_user_data);
    }

    /// @return [tokens][n_embd], halved again
    std::vector<std::vector<float>> compute(const std::vector<llama_token> & tokens) {
        const ggml_init_params params{ggml_tensor_overhead() * 16 + ggml_graph_overhead(), nullptr, /*no_alloc=*/true};
        const ggml_context_ptr context(ggml_init(params));
        ggml_tensor * table = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, n_embd, n_vocab);
        ggml_tensor * input = ggml_new_tensor_1d(context.get(), GGML_TYPE_I32, static_cast<int64_t>(tokens.size()));
        ggml_set_name(table, names_.table);
        ggml_set_name(input, names_.input);
        ggml_set_input(table);
        ggml_set_input(input);
        ggml_tensor * result = ggml_scale(context.get(), ggml_get_rows(context.get(), table, input), 2.0F);
        ggml_set_output(result);
        ggml_cgraph * graph = ggml_new_graph(context.get());
        ggml_build_forward_expand(graph, result);
        ggml_backend_sched_reset(scheduler_.get());
        EXPECT_TRUE(ggml_backend_sched_alloc_graph(scheduler_.get(), graph));

        std::vector<float> weights;
        for (llama_token t = 0; t < n_vocab; ++t) {
            for (const float x : table_row(t)) weights.push_back(x);
        }
        ggml_backend_tensor_set(table, weights.data(), 0, weights.size() * sizeof(float));
        ggml_backend_tensor_set(input, tokens.data(), 0, tokens.size() * sizeof(llama_token));
        EXPECT_EQ(ggml_backend_sched_graph_compute(scheduler_.get(), graph), GGML_STATUS_SUCCESS);

        std::vector<std::vector<float>> rows(tokens.size(), std::vector<float>(n_embd));
        for (size_t i = 0; i < tokens.size(); ++i) {
            ggml_backend_tensor_get(result, rows[i].data(), i * result->nb[1], n_embd * sizeof(float));
            for (float & x : rows[i]) x /= 2.0F;
        }
        return rows;
    }

  private:
    GraphNames names_;
    ggml_backend_ptr backend_;
    ggml_backend_sched_ptr scheduler_;
};

void negate(std::span<float> row) {
    for (float & x : row) x = -x;
}

std::vector<float> negated(std::vector<float> row) {
    negate(row);
    return row;
}

class Hook : public ::testing::Test {
  protected:
    void install(Graph & graph) {
        params_ = llama_context_default_params();
        hook_.install(params_);
        graph.set_callback(params_);
    }
    ReframingHook hook_;
    llama_context_params params_{};
};

TEST_F(Hook, PerturbsTwinRowsAndLeavesCleanRowsBitForBit) {
    Graph graph;
    install(graph);
    hook_.expect({{3, {}}, {5, negate}, {3, negate}, {0, {}}});
    const auto rows = graph.compute({3, 5, 3, 0});
    EXPECT_EQ(hook_.finish(), std::nullopt);
    EXPECT_EQ(rows[0], table_row(3));
    EXPECT_EQ(rows[1], negated(table_row(5)));
    EXPECT_EQ(rows[2], negated(table_row(3)));
    EXPECT_EQ(rows[3], table_row(0));
}

TEST_F(Hook, GivesThePerturbationItsRow) {
    Graph graph;
    install(graph);
    std::vector<float> seen;
    hook_.expect({{1, {}}, {9, [&](std::span<float> row) { seen.assign(row.begin(), row.end()); }}});
    const auto rows = graph.compute({1, 9});
    EXPECT_EQ(hook_.finish(), std::nullopt);
    EXPECT_EQ(seen, table_row(9));
    EXPECT_EQ(rows[1], table_row(9));
}

TEST_F(Hook, FollowsABatchOverItsMicroBatches) {
    Graph graph;
    install(graph);
    hook_.expect({{1, negate}, {2, {}}, {3, {}}, {4, negate}, {5, {}}});
    EXPECT_EQ(graph.compute({1, 2}), (std::vector{negated(table_row(1)), table_row(2)}));
    EXPECT_EQ(graph.compute({3, 4}), (std::vector{table_row(3), negated(table_row(4))}));
    EXPECT_EQ(graph.compute({5})[0], table_row(5));
    EXPECT_EQ(hook_.finish(), std::nullopt);
}

TEST_F(Hook, ReportsAnotherOrderOfTokens) {
    Graph graph;
    install(graph);
    hook_.expect({{3, {}}, {5, negate}});
    const auto rows = graph.compute({5, 3});
    EXPECT_EQ(hook_.finish(), "llama.cpp computed the rows of a batch in another order than expected");
    EXPECT_EQ(rows, (std::vector{table_row(5), table_row(3)}));
    hook_.expect({{3, {}}, {5, negate}});  // and starts afresh
    (void)graph.compute({3, 5});
    EXPECT_EQ(hook_.finish(), std::nullopt);
}

TEST_F(Hook, ReportsAnotherOrderAlsoOfCleanRows) {
    Graph graph;
    install(graph);
    hook_.expect({{5, negate}, {3, {}}, {4, {}}});
    (void)graph.compute({5, 4, 3});
    EXPECT_NE(hook_.finish(), std::nullopt);
}

TEST_F(Hook, ReportsMoreAndFewerRowsThanExpected) {
    Graph graph;
    install(graph);
    hook_.expect({{3, negate}});
    (void)graph.compute({3, 5});
    EXPECT_EQ(hook_.finish(), "unexpected shape or type of the token embeddings");
    hook_.expect({{3, negate}, {5, negate}, {6, {}}});
    (void)graph.compute({3, 5});
    EXPECT_EQ(hook_.finish(), "the look-up of token embeddings was seen for 2 of 3 rows");
}

TEST_F(Hook, ReportsALookUpThatIsNotThere) {
    for (const GraphNames names :
         {GraphNames{"other.weight", "inp_tokens"}, GraphNames{"token_embd.weight", "inp_pos"}}) {
        Graph graph(names);
        install(graph);
        hook_.expect({{3, negate}});
        EXPECT_EQ(graph.compute({3})[0], table_row(3));
        EXPECT_EQ(hook_.finish(), "the look-up of token embeddings was seen for 0 of 1 rows");
    }
}

TEST_F(Hook, KnowsTheSchedulersCopiesOfTheInput) {
    Graph graph({"token_embd.weight", "CPU#inp_tokens#0"});
    install(graph);
    hook_.expect({{3, negate}});
    EXPECT_EQ(graph.compute({3})[0], negated(table_row(3)));
    EXPECT_EQ(hook_.finish(), std::nullopt);
}

TEST_F(Hook, LeavesOtherLookUpsAlone) {
    // per-layer embeddings (gemma 3n) look the same tokens up in another table
    Graph graph({"per_layer_token_embd.weight", "inp_tokens"});
    install(graph);
    hook_.expect({{3, negate}});
    EXPECT_EQ(graph.compute({3})[0], table_row(3));
    EXPECT_NE(hook_.finish(), std::nullopt);
}

TEST_F(Hook, RefusesALoraOnTheEmbeddings) {
    Graph graph({"token_embd.weight.lora_a", "inp_tokens"});
    install(graph);
    hook_.expect({{3, negate}});
    (void)graph.compute({3});
    const auto failure = hook_.finish();
    ASSERT_TRUE(failure.has_value());
    EXPECT_NE(failure->find("token_embd.weight.lora_a"), std::string::npos) << *failure;
    hook_.expect({{3, {}}});  // clean rows may use the adapter
    (void)graph.compute({3});
    EXPECT_EQ(hook_.finish(), std::nullopt);
}

TEST_F(Hook, InterceptsNothingInACleanBatch) {
    const ggml_context_ptr context(ggml_init({ggml_tensor_overhead() * 8, nullptr, true}));
    ggml_tensor * table = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, n_embd, n_vocab);
    ggml_tensor * input = ggml_new_tensor_1d(context.get(), GGML_TYPE_I32, 2);
    ggml_set_name(table, "token_embd.weight");
    ggml_set_name(input, "inp_tokens");
    ggml_tensor * rows = ggml_get_rows(context.get(), table, input);
    params_ = llama_context_default_params();
    hook_.install(params_);
    const auto asks = [&](ggml_tensor * node) { return params_.cb_eval(node, true, params_.cb_eval_user_data); };
    EXPECT_FALSE(asks(rows));  // before any batch
    hook_.expect({{1, {}}, {2, {}}});
    EXPECT_FALSE(asks(rows));
    hook_.expect({});
    EXPECT_FALSE(asks(rows));
    hook_.expect({{1, {}}, {2, negate}});
    EXPECT_TRUE(asks(rows));
    EXPECT_FALSE(asks(table));
    (void)hook_.finish();
    EXPECT_FALSE(asks(rows));  // between batches
}

/// A caller's own callback: notes what it was asked about and given.
struct Recorder {
    std::string wanted;  // op it wants to see
    bool go_on = true;
    std::vector<std::string> asked, given;
    static bool callback(ggml_tensor * node, bool ask, void * self) {
        auto & recorder = *static_cast<Recorder *>(self);
        (ask ? recorder.asked : recorder.given).emplace_back(ggml_op_name(node->op));
        return ask ? ggml_op_name(node->op) == recorder.wanted : recorder.go_on;
    }
};

class ChainedHook : public Hook {
  protected:
    std::vector<std::vector<float>> compute(Recorder & recorder, std::vector<ReframingHook::ExpectedRow> expected) {
        Graph graph;
        params_ = llama_context_default_params();
        params_.cb_eval = &Recorder::callback;
        params_.cb_eval_user_data = &recorder;
        hook_.install(params_);
        graph.set_callback(params_);
        hook_.expect(std::move(expected));
        return graph.compute({3, 5});
    }
    using Names = std::vector<std::string>;
};

TEST_F(ChainedHook, TheCallersCallbackIsAskedAboutAllNodes) {
    for (const auto & perturb : {ReframingHook::Perturb(), ReframingHook::Perturb(negate)}) {
        Recorder recorder{.wanted = "SCALE", .go_on = true, .asked = {}, .given = {}};
        (void)compute(recorder, {{3, {}}, {5, perturb}});
        EXPECT_EQ(hook_.finish(), std::nullopt);
        EXPECT_EQ(recorder.asked, (Names{"GET_ROWS", "SCALE"}));
        EXPECT_EQ(recorder.given, Names{"SCALE"});  // what it wanted, not what the hook wanted
    }
}

TEST_F(ChainedHook, BothMayWantTheLookUp) {
    Recorder recorder{.wanted = "GET_ROWS", .go_on = true, .asked = {}, .given = {}};
    const auto rows = compute(recorder, {{3, {}}, {5, negate}});
    EXPECT_EQ(hook_.finish(), std::nullopt);
    EXPECT_EQ(recorder.given, Names{"GET_ROWS"});
    EXPECT_EQ(rows[1], negated(table_row(5)));
}

TEST_F(ChainedHook, TheCallersCallbackMayStopTheGraph) {
    Recorder recorder{.wanted = "GET_ROWS", .go_on = false, .asked = {}, .given = {}};
    (void)compute(recorder, {{3, {}}, {5, {}}});
    EXPECT_EQ(recorder.asked, Names{"GET_ROWS"});  // SCALE was not reached
}

}  // namespace
}  // namespace harp::forward
