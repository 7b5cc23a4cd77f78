// Values of a request's fields: of the right type and in range, or refused with the value and what is allowed.
//
// llama.cpp's server passes over many values of a wrong type without a word, and takes numbers modulo 2^32.
// patches/server-wrong-values.patch and others call this.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "common.h"
#include "json.h"
#include "llama.h"

namespace harp::server {

/// A request's value as error messages repeat it. It may be of any length.
[[nodiscard]] std::string shown(const common_json & value);

/// @throws std::invalid_argument "VALUE; allowed: ..."
[[noreturn]] void refuse_value(const common_json & value, const std::string & allowed);

/// @throws std::invalid_argument "NAME: VALUE; allowed: ..."
[[noreturn]] void refuse_field(const std::string & name, const common_json & value, std::string_view allowed);

/// Null is the same as leaving a field out.
[[nodiscard]] bool is_given(const common_json & body, const std::string & name);

/// @return the value, from `least` to `most`
/// @throws std::invalid_argument if it is not a whole number in that range
[[nodiscard]] int64_t whole_number(const common_json & value, int64_t least, int64_t most);

/// @return the value as a number that a float can hold
/// @throws std::invalid_argument
[[nodiscard]] double real_number(const common_json & value);

/// A number from `least` to `most`, whole if T is. One that is out of range is refused, or counts as the nearest.
/// @throws std::invalid_argument
template <typename T>
T limited(const common_json & value, T least, T most, bool refuses) {
    if constexpr (std::is_integral_v<T>) {
        if (!value.is_number()) return static_cast<T>(whole_number(value, least, most));
    }
    const double number = real_number(value);
    if (!refuses && number < static_cast<double>(least)) return least;
    if (!refuses && number > static_cast<double>(most)) return most;
    if constexpr (std::is_integral_v<T>) {
        return static_cast<T>(whole_number(value, least, most));
    } else {
        if (number < least || number > most) refuse_value(value, std::to_string(least) + ".." + std::to_string(most));
        return static_cast<T>(number);
    }
}

/// -1 is a random one, as for llama.cpp, whose seeds have 32 bits. OpenAI's have 64, and are folded.
/// @throws std::invalid_argument
[[nodiscard]] uint32_t seed_of(const common_json & value);

/// A text, or a list of texts; empty texts and null are left out.
/// @throws std::invalid_argument
[[nodiscard]] std::vector<std::string> texts_of(const common_json & value);

/// The field "logit_bias": a list of pairs of a token or a text and its bias, or an object. A bias is a number, or false: never.
/// @throws std::invalid_argument
[[nodiscard]] std::vector<llama_logit_bias> logit_bias_of(const llama_vocab & vocab, const common_json & value);

/// A list of token ids. Whether the vocabulary has them is not checked.
/// @throws std::invalid_argument
[[nodiscard]] std::vector<llama_token> tokens_of(const common_json & value);

/// Names of samplers, or a letter for each.
/// @throws std::invalid_argument for those that are unknown
[[nodiscard]] std::vector<common_sampler_type> samplers_of(const common_json & value);

/// Refuses what is neither a text nor a list of texts and tokens that the vocabulary has.
/// @throws std::invalid_argument naming the field
void check_texts_and_tokens(const std::string & name, const llama_vocab & vocab, const common_json & value);

/// The field "id_slot", -1 if there is none.
/// @throws std::invalid_argument if the server has no such slot
[[nodiscard]] int32_t slot_of(const common_json & body, int32_t n_slots);

/// The member "id" of {"id", "scale"}, a LoRA adapter of the server.
/// @throws std::invalid_argument if it has no such adapter
[[nodiscard]] int32_t adapter_of(const common_json & entry, size_t n_adapters);

/// A field's value as T. `fallback` says which kind of JSON value it must be.
/// @throws std::invalid_argument naming the field
template <typename T>
T value_as(const std::string & name, const common_json & value, const T & fallback) {
    try {
        if constexpr (std::is_same_v<T, common_json>) {
            if (fallback.is_object() && !value.is_object()) refuse_value(value, "an object");
            if (fallback.is_array() && !value.is_array()) refuse_value(value, "a list");
            return value;
        } else if constexpr (std::is_same_v<T, bool>) {
            if (!value.is_boolean()) refuse_value(value, "true, false");
            return value.get<bool>();
        } else if constexpr (std::is_integral_v<T>) {
            constexpr bool is_wide = sizeof(T) == 8;  // counts of bytes: no limit of a size_t is needed
            return static_cast<T>(
                whole_number(value, is_wide && std::is_unsigned_v<T> ? 0 : std::numeric_limits<T>::min(),
                             is_wide ? std::numeric_limits<int64_t>::max() : std::numeric_limits<T>::max()));
        } else if constexpr (std::is_floating_point_v<T>) {
            return static_cast<T>(real_number(value));
        } else if constexpr (std::is_same_v<T, std::string>) {
            if (!value.is_string()) refuse_value(value, "a text");
            return value.get<std::string>();
        } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
            if (!value.is_array()) refuse_value(value, "a list of texts");
            for (const common_json & text : value) {
                if (!text.is_string()) refuse_value(text, "texts");
            }
            return value.get<T>();
        } else {
            return value.get<T>();
        }
    } catch (const std::exception & error) {
        throw std::invalid_argument(name + ": " + error.what());
    }
}

}  // namespace harp::server
