// The options of HARP: one struct, and one table from which every program takes names, defaults, ranges and help texts.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace harp {

/// How an embedding row is perturbed. HARP (arXiv 2412.07282) uses dropout; the others are its ablations.
enum class Perturbation {
    dropout,   ///< a coordinate is kept where u > delta, u ~ U[0,1), else 0; kept values are not rescaled
    uniform,   ///< NEFTune (arXiv 2310.05914): adds U(-1,1) * alpha / sqrt(length * n_embd)
    gaussian,  ///< adds N(0,1) * sigma * RMS(row)
};

/// When the rows of the reframed twin are computed. The logits are the same up to rounding; only the cost differs.
enum class Schedule {
    automatic,  ///< "auto": picks by the measured cost of a batch of n rows and the share of hesitations
    fused,      ///< each step decodes the clean row and the twin's row in one batch
    lazy,       ///< at a hesitation the twin catches up on its pending rows in one batch
};

/// Which positions are perturbed.
enum class Scope {
    all,        ///< every position, the beginning-of-sequence token included (the paper)
    generated,  ///< the prompt stays clean; the twin shares its KV cells, so there is no second prefill
};

/// What is compared with the threshold at each step.
enum class Gate {
    entropy,  ///< entropy of the next-token distribution, bits (the paper)
    ratio,    ///< second greatest probability over the greatest, 0..1 (what the paper compares with)
};

/// What the second pass reads. Only `perturbed` and `masked` change rows: perturbation, redraw and scope concern only
/// them.
enum class View {
    perturbed,  ///< all rows, their embeddings perturbed (the paper)
    masked,     ///< all rows, each dropped (its embedding is 0) with probability `strength`: word dropout
    guidance,  ///< the answer after the prompt's last token or a negative prompt: classifier-free guidance (2306.17806)
    last,      ///< the last `view_tokens` rows: coherence boosting (2110.08294)
};

/// The options of HARP. Defaults are the authors'. A plain aggregate: check it with validate().
struct Options {
    Gate gate = Gate::entropy;
    double threshold = 1.0;  ///< theta, >= 0, in the gate's unit; hesitates where the gate is above; infinite: never
    float beta = 0.5F;  ///< 0..8; below 1 the vanilla logits' share in the mix; 1 is vanilla; above 1 the second pass
                        ///< is subtracted (contrast)
    float plausibility = 0;  ///< alpha in 0..1; with beta > 1 only tokens with p >= alpha * max p change; 0: all
    View view = View::perturbed;
    uint32_t view_tokens = 10;  ///< rows of View::last, >= 1
    Perturbation perturbation = Perturbation::dropout;
    float strength =
        0.2F;  ///< dropout, masked: delta in 0..1; uniform: alpha > 0; gaussian: sigma > 0, in units of the row's RMS
    uint32_t reframings = 1;  ///< 1..8 perturbed passes, their logits averaged; 1 if the view has no masks
    Schedule schedule = Schedule::automatic;
    uint32_t redraw = 0;  ///< new masks every Nth hesitation; 0 never, 1 at each one (exactly the paper)
    Scope scope = Scope::all;
    uint64_t seed = 0;  ///< of the masks; independent of the sampler's seed

    bool operator==(const Options &) const = default;

    /// True if these options can never change a logit (threshold infinite or beta 1): no second pass is run.
    [[nodiscard]] bool is_vanilla() const noexcept;
};

/// Whether a view depends on random masks, so that there can be new draws and several reframings.
[[nodiscard]] constexpr bool has_masks(View view) noexcept {
    return view == View::perturbed || view == View::masked;
}

inline constexpr uint32_t max_reframings = 8;

/// One row of the option table.
struct OptionInfo {
    std::string_view name;           ///< the same in C++, JSON and Python; on the command line --harp-NAME
    std::string_view default_value;  ///< text that set_option() accepts
    std::string_view range;          ///< allowed values, for people
    std::string_view meaning;        ///< one line of help, with the paper's letter where there is one
};

/// All options in the order of the table in docs/OPTIONS.md.
[[nodiscard]] std::span<const OptionInfo> option_table() noexcept;

/// Checks that a name is among those known.
/// @throws Error{invalid_option} naming those, and the nearest if it is at most two typing errors away
void check_name(std::string_view name, std::span<const std::string_view> known);

/// Sets one option from text.
/// @throws Error{invalid_option} naming field, value and range if the name is unknown or the text is not a value
void set_option(Options & options, std::string_view name, std::string_view value);

/// One option as text; set_option() reads it back to the same value.
/// @throws Error{invalid_option} if the name is unknown
[[nodiscard]] std::string get_option(const Options & options, std::string_view name);

/// Whether an option has a value that is allowed with those of the other options.
/// @throws Error{invalid_option} if the name is unknown
[[nodiscard]] bool is_allowed(const Options & options, std::string_view name);

/// Checks every rule, also those between fields (the range of strength depends on the perturbation).
/// @throws Error{invalid_option} naming field, value and range
void validate(const Options & options);

/// Checks that a second pass with room for `n_ctx_twin` tokens can hold what the view reads; 0: as many as the first.
/// @throws Error{invalid_option} for a view that reads the whole sequence, and for more view_tokens than there is room
void check_room(const Options & options, uint32_t n_ctx_twin);

}  // namespace harp
