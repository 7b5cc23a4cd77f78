#include "decoding/drafter.h"

#include <algorithm>

#include "common.h"
#include "speculative.h"
#include "stopwatch.h"

namespace harp::decoding {

namespace {

bool names_no_type(const common_params_speculative & params) {
    return std::all_of(params.types.begin(), params.types.end(),
                       [](common_speculative_type type) { return type == COMMON_SPECULATIVE_TYPE_NONE; });
}

}  // namespace

bool asks_for_speculation(const common_params & params) {
    return params.speculative.has_dft() || !names_no_type(params.speculative);
}

struct Drafter::Impl {
    common_params_speculative params;                // referred to by `speculation`
    common_speculative_init_result_ptr draft_model;  // model and context; null for n-gram look-up
    common_speculative_ptr speculation;
    common_batch batch;  // the target's rows in the form that the speculation takes

    [[nodiscard]] llama_memory_t memory() const {
        return params.draft.ctx_dft != nullptr ? llama_get_memory(params.draft.ctx_dft) : nullptr;
    }
};

std::unique_ptr<Drafter> Drafter::make(ForwardPass & target, const common_params & params) {
    if (!asks_for_speculation(params)) return nullptr;
    llama_context * context = target.context();
    const llama_model * model = llama_get_model(context);
    if (llama_model_is_recurrent(model) || llama_model_is_hybrid(model)) {
        throw Error(ErrorCode::unsupported_call,
                    "speculation: the recurrent state of this model cannot take back rejected tokens");
    }
    auto impl = std::make_unique<Impl>();
    impl->params = params.speculative;
    const std::string & path = params.speculative.draft.mparams.path;
    try {
        if (params.speculative.has_dft()) {
            common_params target_params = params;
            target_params.n_parallel = static_cast<int32_t>(target.n_seq_max());
            target_params.kv_unified = target.n_seq_max() > 1 && target.n_ctx_seq() == target.n_ctx();
            common_params draft_params = common_base_params_to_speculative(target_params);
            impl->draft_model =
                common_speculative_init_from_params(draft_params, const_cast<llama_model *>(model), context);
            if (impl->draft_model->context() == nullptr)
                throw Error(ErrorCode::invalid_input, "the draft model '" + path + "' cannot be loaded");
            impl->params.draft.ctx_tgt = context;
            impl->params.draft.ctx_dft = impl->draft_model->context();
            if (names_no_type(impl->params)) impl->params.types = {COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE};
        }
        impl->speculation.reset(common_speculative_init(impl->params, target.n_seq_max()));
    } catch (const Error &) {
        throw;
    } catch (const std::exception & error) {
        const std::string what = path.empty() ? "speculation: " : "the draft model '" + path + "': ";
        throw Error(ErrorCode::invalid_input, what + error.what());
    }
    if (!impl->speculation)
        throw Error(ErrorCode::invalid_input, "speculation: none of the requested types is available");
    impl->batch = common_batch(context);
    return std::unique_ptr<Drafter>(new Drafter(std::move(impl)));
}

Drafter::Drafter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Drafter::~Drafter() = default;

void Drafter::begin(llama_seq_id sequence, const std::vector<llama_token> & prompt) {
    common_speculative_begin(impl_->speculation.get(), sequence, prompt);
}

std::vector<llama_token> Drafter::draft(llama_seq_id sequence, const std::vector<llama_token> & tokens,
                                        llama_token last, size_t n_max) {
    std::vector<llama_token> result;
    if (n_max == 0) return result;
    const Stopwatch watch;
    const auto position = static_cast<llama_pos>(tokens.size());
    common_speculative_get_draft_params(impl_->speculation.get(), sequence) = {
        true, static_cast<int32_t>(n_max), position, last, &tokens, &result};
    common_speculative_draft(impl_->speculation.get());
    if (result.size() > n_max) result.resize(n_max);
    // the draft model has decoded its own proposal; follow() decodes those positions again, with the target's tokens
    truncate(sequence, position);
    statistics_.seconds += watch.seconds();
    statistics_.drafted += result.size();
    statistics_.batches += result.empty() ? 0U : 1U;
    return result;
}

void Drafter::follow(const llama_batch & rows) {
    const Stopwatch watch;
    impl_->batch.clear();
    for (int32_t i = 0; i < rows.n_tokens; ++i)
        impl_->batch.add(rows.token[i], rows.pos[i], *rows.seq_id[i], /*output=*/true);
    if (!common_speculative_process(impl_->speculation.get(), impl_->batch))
        throw Error(ErrorCode::decode_failed, "the draft model could not follow the target");
    statistics_.seconds += watch.seconds();
}

void Drafter::accept(llama_seq_id sequence, size_t n_accepted, llama_pos end) {
    common_speculative_accept(impl_->speculation.get(), sequence, static_cast<uint16_t>(n_accepted));
    statistics_.accepted += n_accepted;
    truncate(sequence, end);
}

void Drafter::truncate(llama_seq_id sequence, llama_pos end) {
    if (llama_memory_t memory = impl_->memory(); memory != nullptr) llama_memory_seq_rm(memory, sequence, end, -1);
}

}  // namespace harp::decoding
