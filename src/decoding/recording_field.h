// A value in a recorded run's JSON together with its place in the file, so that errors can name file and field.
#pragma once

#include <climits>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "harp/error.h"
#include "llama.h"

namespace harp::decoding {

using nlohmann::json;

class Field {
  public:
    Field(const std::filesystem::path & file, const json & value) : file_(&file), value_(&value) {}

    [[nodiscard]] Field operator[](const char * key) const {
        const Field child(*file_, *value_, name_.empty() ? key : name_ + "." + key);
        if (!value_->is_object()) fail("not an object");
        const auto it = value_->find(key);
        if (it == value_->end()) child.fail("missing");
        return {*file_, *it, child.name_};
    }
    [[nodiscard]] const std::filesystem::path & file() const { return *file_; }
    [[nodiscard]] bool is_null() const { return value_->is_null(); }
    [[nodiscard]] bool has(const char * key) const { return value_->is_object() && value_->contains(key); }

    [[nodiscard]] std::vector<Field> elements() const {
        if (!value_->is_array()) fail("not an array");
        std::vector<Field> result;
        for (const json & element : *value_) {
            result.push_back({*file_, element, name_ + "[" + std::to_string(result.size()) + "]"});
        }
        return result;
    }

    [[nodiscard]] const std::string & text() const {
        if (!value_->is_string()) fail("not a string");
        return value_->get_ref<const std::string &>();
    }
    [[nodiscard]] bool boolean() const {
        if (!value_->is_boolean()) fail("not a boolean");
        return value_->get<bool>();
    }
    [[nodiscard]] double number() const {
        if (!value_->is_number()) fail("not a number");
        return value_->get<double>();
    }
    [[nodiscard]] int32_t integer(int32_t least, int32_t most) const {
        if (!value_->is_number_integer()) fail("not an integer");
        const bool fits = !value_->is_number_unsigned() || value_->get<uint64_t>() <= INT32_MAX;
        if (!fits || value_->get<int64_t>() < least || value_->get<int64_t>() > most) {
            fail(value_->dump() + " is out of range; allowed: " + std::to_string(least) + ".." + std::to_string(most));
        }
        return value_->get<int32_t>();
    }

    [[noreturn]] void fail(const std::string & problem) const {
        throw Error(ErrorCode::invalid_input, file_->string() + ": " + (name_.empty() ? "" : name_ + ": ") + problem);
    }

  private:
    Field(const std::filesystem::path & file, const json & value, std::string name)
        : file_(&file), value_(&value), name_(std::move(name)) {}

    const std::filesystem::path * file_;
    const json * value_;
    std::string name_;  // for example "steps[3].mask"; empty for the whole file
};

/// @throws Error{io} if the file cannot be read, Error{invalid_input} if it is not JSON
[[nodiscard]] json parse_json_file(const std::filesystem::path & file);

[[nodiscard]] std::vector<llama_token> read_tokens(const Field & list, int32_t n_vocab);

}  // namespace harp::decoding
