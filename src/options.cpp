// The option table: the only place that knows each option's name, default, range, help text, parser and rule.
#include "harp/options.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <limits>
#include <numeric>
#include <system_error>
#include <type_traits>
#include <vector>

#include "error_text.h"
#include "harp/error.h"

namespace harp {

namespace {

// The result of parsing text as a value of some type.
enum class Parsed { ok, malformed, out_of_range };

// ---- values as text ----
//
// `range` is the option's range text. For an enumeration it is the list of its names, in the order of the
// enumerators.

template <class T>
concept Number = std::floating_point<T> || std::unsigned_integral<T>;

template <class T>
concept Enumeration = std::is_enum_v<T>;

constexpr std::string_view separator = ", ";

std::vector<std::string_view> split_names(std::string_view range) {
    std::vector<std::string_view> names;
    size_t end = range.find(separator);
    for (; end != std::string_view::npos; end = range.find(separator)) {
        names.push_back(range.substr(0, end));
        range.remove_prefix(end + separator.size());
    }
    names.push_back(range);
    return names;
}

// Whether a text that is not a T is a whole number all the same, as -1 and 1.8e19 are, which JSON may have for 2^64.
template <std::unsigned_integral T>
bool is_whole_number_beyond(std::string_view text) {
    double wide = 0;
    const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), wide);
    if (rest != text.data() + text.size() || error != std::errc() || std::trunc(wide) != wide) return false;
    return wide < 0 || wide >= std::ldexp(1.0, std::numeric_limits<T>::digits);
}

template <Number T>
Parsed parse(std::string_view text, std::string_view, T & value) {
    const char * end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, value);
    if (rest != end || error == std::errc::invalid_argument) {
        if constexpr (std::unsigned_integral<T>) {
            if (is_whole_number_beyond<T>(text)) return Parsed::out_of_range;
        }
        return Parsed::malformed;
    }
    if constexpr (std::is_same_v<T, float>) {
        double wide = 0;  // too small for a float counts as 0
        if (error == std::errc::result_out_of_range && parse(text, {}, wide) == Parsed::ok && std::fabs(wide) < 1) {
            value = 0;
            return Parsed::ok;
        }
    }
    return error == std::errc() ? Parsed::ok : Parsed::out_of_range;
}

template <Enumeration T>
Parsed parse(std::string_view text, std::string_view range, T & value) {
    const auto names = split_names(range);
    const auto found = std::find(names.begin(), names.end(), text);
    if (found == names.end()) return Parsed::malformed;
    value = static_cast<T>(found - names.begin());
    return Parsed::ok;
}

template <Number T>
std::string to_text(T value, std::string_view) {
    // the shortest text that reads back as the same number; 32 characters are enough for any double or u64
    std::array<char, 32> buffer{};
    const auto result = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
    return {buffer.data(), result.ptr};
}

template <Enumeration T>
std::string to_text(T value, std::string_view range) {
    const auto names = split_names(range);
    const auto index = static_cast<size_t>(value);
    // a number without a name, for example cast to the enumeration by a C caller
    return index < names.size() ? std::string(names[index]) : std::to_string(index);
}

// ---- rules ----

// NaN fails each of these.
bool threshold_allowed(const Options & o) {
    return o.threshold >= 0.0;
}
bool beta_allowed(const Options & o) {
    return o.beta >= 0.0F && o.beta <= 8.0F;
}
bool plausibility_allowed(const Options & o) {
    return o.plausibility >= 0.0F && o.plausibility <= 1.0F;
}
bool view_tokens_allowed(const Options & o) {
    return o.view_tokens >= 1;
}
bool reframings_possible(const Options & o) {
    return o.reframings >= 1 && o.reframings <= max_reframings;
}
bool reframings_allowed(const Options & o) {
    return reframings_possible(o) && (o.reframings == 1 || has_masks(o.view));
}
bool any_value(const Options &) {
    return true;
}

// The rule for strength while the perturbation is not known yet.
// At most: beyond it squares in a model's norms leave float32, and the second pass gives no numbers.
bool strength_possible(const Options & o) {
    return o.strength >= 0.0F && o.strength <= 1e6F;
}

bool strength_allowed(const Options & o) {
    if (!strength_possible(o)) return false;
    const bool is_probability = o.perturbation == Perturbation::dropout || o.view == View::masked;
    return is_probability ? o.strength <= 1.0F : o.strength > 0.0F;
}

// ---- the table ----

struct Field {
    OptionInfo info;
    Parsed (*set)(Options &, std::string_view text, std::string_view range);
    std::string (*get)(const Options &, std::string_view range);
    bool (*possible)(const Options &);  // with some values of the other options
    bool (*allowed)(const Options &);   // with the current values of the other options
};

template <auto Member>
constexpr Field field(OptionInfo info, bool (*possible)(const Options &), bool (*allowed)(const Options &)) {
    return {info,
            [](Options & o, std::string_view text, std::string_view range) { return parse(text, range, o.*Member); },
            [](const Options & o, std::string_view range) { return to_text(o.*Member, range); }, possible, allowed};
}

template <auto Member>
constexpr Field field(OptionInfo info, bool (*allowed)(const Options &)) {
    return field<Member>(info, allowed, allowed);
}

constexpr std::array fields{
    field<&Options::gate>(
        {"gate", "entropy", "entropy, ratio",
         "what is compared with the threshold: entropy of the next token in bits (the paper), or the ratio of the "
         "second best probability to the best"},
        any_value),
    field<&Options::threshold>(
        {"threshold", "1", ">= 0, bits or ratio; inf = never", "theta: the model hesitates where the gate is greater"},
        threshold_allowed),
    field<&Options::beta>({"beta", "0.5", "0..8",
                           "beta: below 1 the share of the vanilla logits in the mix (the paper), 1 = vanilla, above 1 "
                           "the second pass is subtracted"},
                          beta_allowed),
    field<&Options::plausibility>({"plausibility", "0", "0..1",
                                   "alpha: with beta above 1 only tokens at least this share as probable as the best "
                                   "one change; 0 = all"},
                                  plausibility_allowed),
    field<&Options::view>({"view", "perturbed", "perturbed, masked, guidance, last",
                           "what the second pass reads: perturbed embeddings (the paper), masked tokens, the answer "
                           "without the prompt (guidance), or the last tokens"},
                          any_value),
    field<&Options::view_tokens>({"view_tokens", "10", "1..4294967295", "how many tokens the view `last` reads"},
                                 view_tokens_allowed),
    field<&Options::perturbation>({"perturbation", "dropout", "dropout, uniform, gaussian",
                                   "how embeddings are perturbed: dropout (the paper), uniform (NEFTune), gaussian"},
                                  any_value),
    field<&Options::strength>(
        {"strength", "0.2", "dropout 0..1, uniform > 0, gaussian > 0 (both at most 1000000), view masked 0..1",
         "delta of dropout and masks, alpha of uniform, sigma of gaussian (in units of the row's RMS)"},
        strength_possible, strength_allowed),
    field<&Options::reframings>(
        {"reframings", "1", "1..8; with view guidance or last 1", "perturbed passes, whose logits are averaged"},
        reframings_possible, reframings_allowed),
    field<&Options::schedule>({"schedule", "auto", "auto, fused, lazy",
                               "when the perturbed pass runs: fused at each step, lazy at a hesitation, auto measures"},
                              any_value),
    field<&Options::redraw>(
        {"redraw", "0", "0..4294967295", "new masks every Nth hesitation; 0 = never, 1 = at each one (the paper)"},
        any_value),
    field<&Options::scope>({"scope", "all", "all, generated",
                            "which positions are perturbed: all (the paper), or only those after the prompt"},
                           any_value),
    field<&Options::seed>(
        {"seed", "0", "0..18446744073709551615", "seed of the masks; independent of the sampler's seed"}, any_value),
};

constexpr auto infos = [] {
    std::array<OptionInfo, fields.size()> result{};
    std::transform(fields.begin(), fields.end(), result.begin(), [](const Field & f) { return f.info; });
    return result;
}();

constexpr auto option_names = [] {
    std::array<std::string_view, fields.size()> result{};
    std::transform(fields.begin(), fields.end(), result.begin(), [](const Field & f) { return f.info.name; });
    return result;
}();

// ---- errors ----

// Number of insertions, deletions and replacements between two words.
size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), size_t{0});
    for (size_t i = 0; i < a.size(); ++i) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < b.size(); ++j) {
            const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
            diagonal = row[j + 1];
            row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
        }
    }
    return row[b.size()];
}

// " (did you mean 'beta'?)" if a known name is at most two typing errors away, else nothing.
std::string suggestion(std::string_view name, std::span<const std::string_view> known) {
    const auto distance = [&](std::string_view other) {
        constexpr size_t far = 3;  // a name may be of any length, too long to compare
        return name.size() > other.size() + 2 ? far : edit_distance(name, other);
    };
    const auto nearest = std::min_element(known.begin(), known.end(),
                                          [&](const auto & a, const auto & b) { return distance(a) < distance(b); });
    if (distance(*nearest) > 2) return {};
    return " (did you mean '" + std::string(*nearest) + "'?)";
}

[[noreturn]] void fail_unknown(std::string_view name, std::span<const std::string_view> known) {
    std::string list;
    for (const std::string_view one : known) list.append(list.empty() ? "" : separator).append(one);
    throw Error(ErrorCode::invalid_option,
                "unknown option '" + shortened(name) + "'" + suggestion(name, known) + "; known: " + list);
}

[[noreturn]] void fail(const OptionInfo & info, const std::string & what) {
    throw Error(ErrorCode::invalid_option,
                "option '" + std::string(info.name) + "': " + what + "; allowed: " + std::string(info.range));
}

const Field & find_field(std::string_view name) {
    const auto found =
        std::find_if(fields.begin(), fields.end(), [&](const Field & field) { return field.info.name == name; });
    if (found == fields.end()) fail_unknown(name, option_names);
    return *found;
}

// An enumeration has no rule of its own. It is valid if its value has a name, which means that its text can be
// read back.
bool has_text(const Field & field, Options options) {
    return field.set(options, field.get(options, field.info.range), field.info.range) == Parsed::ok;
}

bool is_allowed(const Field & field, const Options & options) {
    return has_text(field, options) && field.allowed(options);
}

}  // namespace

bool Options::is_vanilla() const noexcept {
    return std::isinf(threshold) || beta == 1.0F;
}

std::span<const OptionInfo> option_table() noexcept {
    return infos;
}

void check_name(std::string_view name, std::span<const std::string_view> known) {
    if (std::find(known.begin(), known.end(), name) == known.end()) fail_unknown(name, known);
}

void set_option(Options & options, std::string_view name, std::string_view value) {
    const Field & field = find_field(name);
    Options changed = options;
    const Parsed parsed = field.set(changed, value, field.info.range);
    if (parsed == Parsed::malformed) fail(field.info, "'" + shortened(value) + "' is not a value");
    if (parsed == Parsed::out_of_range || !field.possible(changed)) {
        fail(field.info, shortened(value) + " is out of range");
    }
    options = changed;
}

std::string get_option(const Options & options, std::string_view name) {
    const Field & field = find_field(name);
    return field.get(options, field.info.range);
}

bool is_allowed(const Options & options, std::string_view name) {
    return is_allowed(find_field(name), options);
}

void validate(const Options & options) {
    for (const Field & field : fields) {
        if (!is_allowed(field, options)) {
            fail(field.info, field.get(options, field.info.range) + " is out of range");
        }
    }
}

void check_room(const Options & options, uint32_t n_ctx_twin) {
    if (n_ctx_twin == 0 || options.is_vanilla()) return;
    const std::string room = "; the second pass has room for " + std::to_string(n_ctx_twin) + " tokens (n_ctx_twin)";
    if (options.view == View::last && options.view_tokens > n_ctx_twin) {
        throw Error(ErrorCode::invalid_option, "option 'view_tokens': " + std::to_string(options.view_tokens) + room +
                                                   "; allowed: 1.." + std::to_string(n_ctx_twin));
    }
    if (has_masks(options.view) && options.scope == Scope::all) {
        throw Error(ErrorCode::invalid_option, "option 'view': " + get_option(options, "view") +
                                                   " reads the whole sequence" + room +
                                                   "; allowed: guidance, last, or the scope generated");
    }
}

}  // namespace harp
