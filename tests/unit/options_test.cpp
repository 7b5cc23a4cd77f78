// The option table: each row reads back what it writes, and refuses invalid values with a complete message.
#include "harp/options.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "harp/error.h"

namespace {

using namespace harp;

// The message of the invalid_option error that `call` must throw.
std::string refusal(const std::function<void()> & call) {
    try {
        call();
    } catch (const Error & error) {
        EXPECT_EQ(error.code(), ErrorCode::invalid_option);
        return error.what();
    }
    ADD_FAILURE() << "nothing was thrown";
    return {};
}

std::string range_of(std::string_view name) {
    for (const OptionInfo & info : option_table()) {
        if (info.name == name) return std::string(info.range);
    }
    ADD_FAILURE() << "no option " << name;
    return {};
}

bool contains(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

void expect_names_all(const std::string & message, std::string_view name, std::string_view value) {
    EXPECT_TRUE(contains(message, "'" + std::string(name) + "'")) << message;
    EXPECT_TRUE(contains(message, value)) << message;
    EXPECT_TRUE(contains(message, range_of(name))) << message;
}

TEST(Options, TableHasEveryOptionOnceInOrder) {
    const std::vector<std::string_view> expected = {
        "gate",     "threshold",  "beta",     "plausibility", "view",  "view_tokens", "perturbation",
        "strength", "reframings", "schedule", "redraw",       "scope", "seed"};
    std::vector<std::string_view> names;
    for (const OptionInfo & info : option_table()) names.push_back(info.name);
    EXPECT_EQ(names, expected);
}

TEST(Options, TableDefaultsAreThoseOfTheStruct) {
    for (const OptionInfo & info : option_table()) {
        EXPECT_EQ(get_option(Options{}, info.name), info.default_value) << info.name;
        Options options{.gate = Gate::ratio,
                        .threshold = 7.0,
                        .beta = 0.75F,
                        .plausibility = 0.25F,
                        .view = View::masked,
                        .view_tokens = 3,
                        .perturbation = Perturbation::gaussian,
                        .strength = 0.125F,
                        .reframings = 3,
                        .schedule = Schedule::lazy,
                        .redraw = 5,
                        .scope = Scope::generated,
                        .seed = 9};
        ASSERT_NE(get_option(options, info.name), info.default_value) << info.name;
        set_option(options, info.name, info.default_value);
        EXPECT_EQ(get_option(options, info.name), info.default_value) << info.name;
        EXPECT_FALSE(info.meaning.empty());
        EXPECT_FALSE(info.range.empty());
    }
}

TEST(Options, DefaultsAreTheAuthors) {
    const Options options;
    EXPECT_EQ(options.threshold, 1.0);
    EXPECT_EQ(options.beta, 0.5F);
    EXPECT_EQ(options.gate, Gate::entropy);
    EXPECT_EQ(options.view, View::perturbed);
    EXPECT_EQ(options.perturbation, Perturbation::dropout);
    EXPECT_EQ(options.strength, 0.2F);
    EXPECT_EQ(options.reframings, 1U);
    EXPECT_NO_THROW(validate(options));
    EXPECT_FALSE(options.is_vanilla());
}

// Every accepted text, and how the value is written.
struct Accepted {
    std::string_view name, text, written;
};

class AcceptedText : public testing::TestWithParam<Accepted> {};

TEST_P(AcceptedText, RoundTrips) {
    const auto [name, text, written] = GetParam();
    Options options;
    set_option(options, name, text);
    EXPECT_EQ(get_option(options, name), written);
    Options again;
    set_option(again, name, written);
    EXPECT_EQ(again, options);
}

INSTANTIATE_TEST_SUITE_P(
    Table, AcceptedText,
    testing::Values(
        Accepted{"threshold", "0", "0"}, Accepted{"threshold", "inf", "inf"}, Accepted{"threshold", "1e-3", "0.001"},
        Accepted{"strength", "5e-324", "0"}, Accepted{"threshold", "0.1000000000000000055511151231257827", "0.1"},
        Accepted{"threshold", "0.30000000000000004", "0.30000000000000004"}, Accepted{"beta", "0", "0"},
        Accepted{"beta", "1", "1"}, Accepted{"beta", "8", "8"}, Accepted{"plausibility", "0.1", "0.1"},
        Accepted{"gate", "ratio", "ratio"}, Accepted{"view", "masked", "masked"},
        Accepted{"view", "guidance", "guidance"}, Accepted{"view", "last", "last"}, Accepted{"view_tokens", "1", "1"},
        Accepted{"beta", "0.1", "0.1"}, Accepted{"beta", "0.333333343", "0.33333334"},
        Accepted{"perturbation", "dropout", "dropout"}, Accepted{"perturbation", "uniform", "uniform"},
        Accepted{"perturbation", "gaussian", "gaussian"}, Accepted{"strength", "0", "0"},
        Accepted{"strength", "1", "1"}, Accepted{"strength", "5", "5"}, Accepted{"reframings", "1", "1"},
        Accepted{"reframings", "8", "8"}, Accepted{"schedule", "auto", "auto"}, Accepted{"schedule", "fused", "fused"},
        Accepted{"schedule", "lazy", "lazy"}, Accepted{"redraw", "1", "1"},
        Accepted{"redraw", "4294967295", "4294967295"}, Accepted{"scope", "all", "all"},
        Accepted{"scope", "generated", "generated"}, Accepted{"seed", "18446744073709551615", "18446744073709551615"}));

// The names of the enumerations are in the order of the enumerators.
TEST(Options, EnumerationsMeanWhatTheySay) {
    Options options;
    set_option(options, "perturbation", "uniform");
    EXPECT_EQ(options.perturbation, Perturbation::uniform);
    set_option(options, "perturbation", "gaussian");
    EXPECT_EQ(options.perturbation, Perturbation::gaussian);
    set_option(options, "schedule", "fused");
    EXPECT_EQ(options.schedule, Schedule::fused);
    set_option(options, "schedule", "lazy");
    EXPECT_EQ(options.schedule, Schedule::lazy);
    set_option(options, "scope", "generated");
    EXPECT_EQ(options.scope, Scope::generated);
    set_option(options, "gate", "ratio");
    EXPECT_EQ(options.gate, Gate::ratio);
    for (const auto & [name, view] : {std::pair("perturbed", View::perturbed), std::pair("masked", View::masked),
                                      std::pair("guidance", View::guidance), std::pair("last", View::last)}) {
        set_option(options, "view", name);
        EXPECT_EQ(options.view, view);
    }
}

struct Refused {
    std::string_view name, text;
};

class RefusedText : public testing::TestWithParam<Refused> {};

TEST_P(RefusedText, NamesFieldValueAndRangeAndChangesNothing) {
    const auto [name, text] = GetParam();
    Options options{.threshold = 2.0, .seed = 3};
    const Options before = options;
    expect_names_all(refusal([&, n = name, t = text] { set_option(options, n, t); }), name, text);
    EXPECT_EQ(options, before);
}

INSTANTIATE_TEST_SUITE_P(
    Table, RefusedText,
    testing::Values(Refused{"threshold", "-0.5"}, Refused{"threshold", "-inf"}, Refused{"threshold", "nan"},
                    Refused{"threshold", "1e999"}, Refused{"threshold", ""}, Refused{"threshold", "1.0x"},
                    Refused{"threshold", " 1"}, Refused{"threshold", "1 "}, Refused{"threshold", "one"},
                    Refused{"threshold", "1,5"}, Refused{"beta", "8.5"}, Refused{"beta", "-0.1"},
                    Refused{"plausibility", "1.5"}, Refused{"plausibility", "-0.1"}, Refused{"plausibility", "nan"},
                    Refused{"gate", "margin"}, Refused{"view", "prompt"}, Refused{"view", ""},
                    Refused{"view_tokens", "0"}, Refused{"view_tokens", "-1"}, Refused{"beta", "nan"},
                    Refused{"beta", "inf"}, Refused{"beta", "half"}, Refused{"perturbation", "noise"},
                    Refused{"perturbation", "Dropout"}, Refused{"perturbation", "dropout, uniform"},
                    Refused{"perturbation", ""}, Refused{"perturbation", "0"}, Refused{"strength", "-1"},
                    Refused{"strength", "1000001"}, Refused{"strength", "inf"}, Refused{"strength", "nan"},
                    Refused{"strength", "x"}, Refused{"reframings", "0"}, Refused{"reframings", "9"},
                    Refused{"reframings", "-1"}, Refused{"reframings", "1.5"}, Refused{"reframings", "4294967297"},
                    Refused{"schedule", "automatic"}, Refused{"schedule", "eager"}, Refused{"redraw", "-1"},
                    Refused{"redraw", "4294967296"}, Refused{"redraw", "never"}, Refused{"scope", "prompt"},
                    Refused{"seed", "-1"}, Refused{"seed", "18446744073709551616"}, Refused{"seed", "0x10"}));

TEST(Options, MessageReadsLikeASentence) {
    Options options;
    EXPECT_EQ(refusal([&] { set_option(options, "beta", "9"); }), "option 'beta': 9 is out of range; allowed: 0..8");
    EXPECT_EQ(refusal([&] { set_option(options, "beta", "half"); }),
              "option 'beta': 'half' is not a value; allowed: 0..8");
}

TEST(Options, MessageRepeatsALongTextUpToACharacter) {
    Options options;
    const auto umlauts = [](size_t n) {
        std::string text = "a";
        for (size_t i = 0; i < n; ++i) text += "\u00e4";
        return text;
    };
    const std::string message = refusal([&] { set_option(options, "beta", umlauts(40)); });
    EXPECT_TRUE(contains(message, "'" + umlauts(31) + "...' is not a value")) << message;
}

TEST(Options, WholeNumbersBeyondATypeAreOutOfRange) {
    Options options;
    for (const auto & [name, text] :
         {std::pair("seed", "18446744073709551616"), std::pair("seed", "1.8446744073709552e+19"),
          std::pair("seed", "-1"), std::pair("redraw", "1e300")}) {
        const std::string message = refusal([&, n = name, t = text] { set_option(options, n, t); });
        EXPECT_EQ(message,
                  "option '" + std::string(name) + "': " + text + " is out of range; allowed: " + range_of(name));
    }
    for (const char * text : {"1.5", "-1.5", "7e0", "x"})
        EXPECT_TRUE(contains(refusal([&] { set_option(options, "seed", text); }), "is not a value")) << text;
}

TEST(Options, AllowedValuesDependOnOtherOptions) {
    const Options noise{.perturbation = Perturbation::gaussian, .strength = 5.0F, .reframings = 2};
    Options masks = noise;
    masks.view = View::masked;
    Options last = noise;
    last.view = View::last;
    EXPECT_TRUE(is_allowed(noise, "strength") && is_allowed(noise, "reframings"));
    EXPECT_FALSE(is_allowed(masks, "strength"));
    EXPECT_TRUE(is_allowed(masks, "reframings"));
    EXPECT_FALSE(is_allowed(last, "reframings"));
    EXPECT_THROW((void)is_allowed(last, "bta"), Error);
}

TEST(Options, NamesAreCheckedAgainstAList) {
    const std::vector<std::string_view> known = {"enabled", "beta"};
    EXPECT_NO_THROW(check_name("enabled", known));
    EXPECT_EQ(refusal([&] { check_name("enable", known); }),
              "unknown option 'enable' (did you mean 'enabled'?); known: enabled, beta");
    EXPECT_EQ(refusal([&] { check_name("gate", known); }), "unknown option 'gate'; known: enabled, beta");
    EXPECT_EQ(refusal([&] { check_name(std::string(1000, 'b'), known); }),
              "unknown option '" + std::string(64, 'b') + "...'; known: enabled, beta");
}

TEST(Options, UnknownNameListsTheKnownAndTheNearest) {
    Options options;
    const std::string typing_error = refusal([&] { set_option(options, "bta", "0.5"); });
    EXPECT_TRUE(contains(typing_error, "unknown option 'bta' (did you mean 'beta'?); known: ")) << typing_error;
    for (const OptionInfo & info : option_table()) {
        EXPECT_TRUE(contains(typing_error, info.name)) << typing_error;
    }
    EXPECT_FALSE(contains(refusal([&] { set_option(options, "temperature", "1"); }), "did you mean"));
    EXPECT_TRUE(contains(refusal([&] { (void)get_option(options, ""); }), "unknown option ''"));
    EXPECT_TRUE(contains(refusal([&] { set_option(options, "Beta", "1"); }), "did you mean 'beta'"));
}

TEST(Options, OrderOfSettingDoesNotMatter) {
    Options first;
    set_option(first, "strength", "5");
    set_option(first, "perturbation", "uniform");
    Options second;
    set_option(second, "perturbation", "uniform");
    set_option(second, "strength", "5");
    EXPECT_EQ(first, second);
    EXPECT_NO_THROW(validate(first));
}

// A value stored directly in the struct, bypassing set_option().
struct Invalid {
    std::string_view name;
    Options options;
};

class InvalidOptions : public testing::TestWithParam<Invalid> {};

TEST_P(InvalidOptions, AreRefused) {
    const auto & [name, options] = GetParam();
    const std::string message = refusal([&o = options] { validate(o); });
    expect_names_all(message, name, get_option(options, name));
}

INSTANTIATE_TEST_SUITE_P(
    Table, InvalidOptions,
    testing::Values(
        Invalid{"threshold", {.threshold = -1.0}}, Invalid{"threshold", {.threshold = NAN}},
        Invalid{"beta", {.beta = 8.00001F}}, Invalid{"beta", {.beta = -0.1F}}, Invalid{"beta", {.beta = NAN}},
        Invalid{"perturbation", {.perturbation = static_cast<Perturbation>(3)}},
        Invalid{"perturbation", {.perturbation = static_cast<Perturbation>(-1)}},
        Invalid{"strength", {.strength = 1.5F}}, Invalid{"strength", {.strength = -0.1F}},
        Invalid{"strength", {.strength = NAN}},
        Invalid{"strength", {.perturbation = Perturbation::uniform, .strength = 0.0F}},
        Invalid{"strength", {.perturbation = Perturbation::gaussian, .strength = 0.0F}},
        Invalid{"strength", {.perturbation = Perturbation::gaussian, .strength = INFINITY}},
        Invalid{"reframings", {.reframings = 0}}, Invalid{"reframings", {.reframings = 9}},
        Invalid{"schedule", {.schedule = static_cast<Schedule>(3)}}, Invalid{"scope", {.scope = static_cast<Scope>(2)}},
        Invalid{"gate", {.gate = static_cast<Gate>(2)}}, Invalid{"view", {.view = static_cast<View>(4)}},
        Invalid{"view_tokens", {.view_tokens = 0}}, Invalid{"plausibility", {.plausibility = 1.01F}},
        Invalid{"reframings", {.view = View::last, .reframings = 2}},
        Invalid{"reframings", {.view = View::guidance, .reframings = 2}},
        Invalid{"strength", {.view = View::masked, .perturbation = Perturbation::gaussian, .strength = 1.5F}}));

TEST(Options, ValidatePassesTheEndsOfEachRange) {
    EXPECT_NO_THROW(validate({.threshold = INFINITY}));
    EXPECT_NO_THROW(validate({.threshold = 0.0, .beta = 0.0F, .strength = 0.0F, .reframings = 1}));
    EXPECT_NO_THROW(validate({.beta = 1.0F, .strength = 1.0F, .reframings = max_reframings}));
    EXPECT_NO_THROW(validate({.perturbation = Perturbation::uniform, .strength = 15.0F}));
    EXPECT_NO_THROW(validate({.perturbation = Perturbation::gaussian, .strength = 0.01F, .seed = ~uint64_t{0}}));
}

TEST(Options, VanillaMeansThatNoLogitCanChange) {
    EXPECT_TRUE((Options{.threshold = INFINITY}).is_vanilla());
    EXPECT_TRUE((Options{.beta = 1.0F}).is_vanilla());
    EXPECT_FALSE((Options{.threshold = 1e300}).is_vanilla());
    EXPECT_FALSE((Options{.beta = 0.99F}).is_vanilla());
    EXPECT_FALSE((Options{.beta = 1.01F}).is_vanilla());
}

}  // namespace
