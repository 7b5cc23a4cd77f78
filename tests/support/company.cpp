// Company: options, histories, their replay.
#include "support/company.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace harp::testing {

Company::Company(llama_model & model, const ReplayCase & of, unsigned seed)
    : model_(model),
      of_(of),
      random_(seed),
      is_windowed_(llama_model_n_swa(&model) > 0),
      is_recurrent_(llama_model_is_recurrent(&model) || llama_model_is_hybrid(&model)),
      n_reframings_(random_.of({1U, 1U, 2U, 3U})),
      steers_(random_.chance(20)),
      members_(static_cast<size_t>(1 + random_.below(4))),
      params_(parameters()),
      pass_(open(params_, random_.of({Schedule::lazy, Schedule::fused}))) {
    said_ = "unified " + std::to_string(params_.kv_unified) + ", n_batch " + std::to_string(params_.n_batch) +
            ", n_ubatch " + std::to_string(params_.n_ubatch) + ", swa_full " + std::to_string(params_.swa_full);
    for (const llama_seq_id s : ids()) set_options(s, random_options(), static_cast<uint32_t>(s));
}

void Company::run(int n_calls) {
    for (int i = 0; i < n_calls && !::testing::Test::HasFailure(); ++i) {
        any_call();
        EXPECT_EQ(pass_->check_invariant(), "") << said_;
    }
    for (const llama_seq_id s : ids()) replay(s);
}

llama_context_params Company::parameters() {
    llama_context_params params = random_context(random_, is_windowed_ ? 640 : 128, members_.size(), is_windowed_);
    params.type_k = params.type_v = of_.cache;
    // flash attention rounds keys and values to float16
    if (of_.cache == GGML_TYPE_F32) params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    return params;
}

std::unique_ptr<ForwardPass> Company::open(const llama_context_params & params, Schedule schedule) {
    Options options;
    options.reframings = n_reframings_;
    options.schedule = schedule;
    auto pass = std::make_unique<ForwardPass>(model_, params, options);
    if (steers_) steer(*pass->context(), 0.1F);
    pass->set_observer([this](const StepObservation & o) {
        if (throws_after_-- == 0) throw std::runtime_error("the observer's own");
        seen_.emplace_back(
            o.sequence,
            Seen{o.position, o.record, {o.vanilla.begin(), o.vanilla.end()}, {o.reframed.begin(), o.reframed.end()}});
    });
    return pass;
}

Options Company::random_options() {
    Options o;
    o.gate = random_.of({Gate::entropy, Gate::entropy, Gate::ratio});
    const double never = std::numeric_limits<double>::infinity();
    o.threshold = o.gate == Gate::ratio ? random_.of({0.0, 0.3, 0.6}) : random_.of({0.0, 0.0, 1.5, 2.5, 4.0, never});
    o.view = random_.of({View::perturbed, View::perturbed, View::masked, View::guidance, View::last});
    o.view_tokens = random_.of({1U, 4U, 10U});
    o.scope = random_.of({Scope::all, Scope::generated});
    o.redraw = random_.of({0U, 0U, 0U, 1U, 2U, 3U});
    if (has_masks(o.view)) o.reframings = random_.of({1U, n_reframings_});
    if (o.view == View::perturbed) {
        o.perturbation = random_.of({Perturbation::dropout, Perturbation::uniform, Perturbation::gaussian});
    }
    if (o.perturbation == Perturbation::uniform) o.strength = 5;
    o.beta = random_.of({0.5F, 0.5F, 0.0F, 1.0F, 1.5F});
    o.schedule = random_.of({Schedule::automatic, Schedule::fused, Schedule::lazy});
    o.seed = random_.of({0U, 1U, 2U});
    return o;
}

std::vector<llama_seq_id> Company::ids() const {
    std::vector<llama_seq_id> all;
    for (size_t s = 0; s < members_.size(); ++s) all.push_back(static_cast<llama_seq_id>(s));
    return all;
}

bool Company::add(llama_seq_id s, const std::string & name,
                  const std::function<bool(ForwardPass &, llama_seq_id)> & apply) {
    say(name + ", sequence " + std::to_string(s));
    if (!apply(*pass_, s)) return false;
    member(s).history.push_back(std::make_shared<Call>(Call{name, apply}));
    member(s).partial.clear();
    return true;
}

void Company::set_options(llama_seq_id s, const Options & options, uint32_t family) {
    std::string name = "options";
    for (const OptionInfo & each : option_table()) {
        name.append(" ").append(each.name).append("=").append(get_option(options, each.name));
    }
    member(s).mask_family = family;
    add(s, name, [this, options, family](ForwardPass & pass, llama_seq_id id) {
        Options own = options;
        if (&pass != pass_.get()) own.schedule = Schedule::lazy;
        pass.set_sequence_options(id, own, family);
        return true;
    });
}

void Company::set_negative_prompt(llama_seq_id s, const std::vector<llama_token> & tokens) {
    member(s).negative_prompt = tokens;
    add(s, "negative prompt", [tokens](ForwardPass & pass, llama_seq_id id) {
        pass.set_negative_prompt(id, tokens);
        return true;
    });
}

bool Company::remove(llama_seq_id s, llama_pos p0, llama_pos p1) {
    const bool done = add(s, "remove " + std::to_string(p0) + ".." + std::to_string(p1),
                          [p0, p1](ForwardPass & pass, llama_seq_id id) { return pass.memory_seq_rm(id, p0, p1); });
    if (next(s) == 0) member(s).has_moved = member(s).begins_anew = false;
    return done;
}

void Company::replay(llama_seq_id s) {
    llama_context_params params = params_;
    params.n_seq_max = 1;
    params.n_batch = params.n_ubatch = 512;
    params.swa_full = true;
    const auto alone = open(params, Schedule::lazy);
    std::string told;
    for (const auto & call : member(s).history) {
        told += "\n" + call->name;
        seen_.clear();
        if (!call->apply(*alone, 0) || !is_same(call->seen, member(s).has_moved && member(s).begins_anew)) break;
    }
    if (::testing::Test::HasFailure()) ADD_FAILURE() << "in company: " << said_ << "\n\nsequence " << s << ": " << told;
}

bool Company::is_same(const std::vector<Seen> & in_company, bool is_loose) {
    EXPECT_EQ(in_company.size(), seen_.size());
    for (size_t i = 0; i < std::min(in_company.size(), seen_.size()); ++i) {
        const Seen & a = in_company[i];
        const Seen & b = seen_[i].second;
        SCOPED_TRACE("position " + std::to_string(b.position));
        ++n_compared_;
        EXPECT_EQ(a.position, b.position);
        EXPECT_LE(largest_difference(a.vanilla, b.vanilla), of_.tolerance);
        if (a.record.hesitated != b.record.hesitated) {  // rounding moved the gate across the threshold
            EXPECT_NEAR(a.record.entropy, b.record.entropy, of_.tolerance);
            return false;
        }
        if (is_loose) continue;
        EXPECT_LE(largest_difference(a.reframed, b.reframed), of_.tolerance) << "second pass";
    }
    return !::testing::Test::HasFailure();
}

}  // namespace harp::testing
