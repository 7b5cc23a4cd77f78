// The C API: states in buffers of the caller and in files.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "harp/harp.h"
#include "support/c_context.h"
#include "support/models.h"

namespace harp::testing {
namespace {

TEST_F(CApi, StateGoesThroughTheBuffersOfTheCaller) {
    const Context source = create();
    (void)greedy_by_c(source.get(), 12);
    std::vector<uint8_t> all(harp_state_get_size(source.get()));
    ASSERT_GT(all.size(), 0U);
    ASSERT_EQ(harp_state_get_data(source.get(), all.data(), all.size()), all.size());
    std::vector<uint8_t> sequence(harp_state_seq_get_size(source.get(), 0));
    ASSERT_EQ(harp_state_seq_get_data(source.get(), sequence.data(), sequence.size(), 0), sequence.size());
    EXPECT_EQ(harp_state_seq_get_size_ext(source.get(), 0, 0), sequence.size());
    EXPECT_EQ(harp_state_seq_get_data(source.get(), sequence.data(), sequence.size() - 1, 0), 0U);
    EXPECT_NE(std::string(harp_last_error()), "");

    const auto go_on = [](llama_context * context) {
        std::vector<std::vector<float>> rows;
        for (llama_token t = 310; t < 316; ++t) {
            EXPECT_EQ(decode(context, {t}), 0) << harp_last_error();
            rows.push_back(row(context));
        }
        return rows;
    };
    const auto expected = go_on(source.get());
    const Context whole = create();
    ASSERT_EQ(harp_state_set_data(whole.get(), all.data(), all.size()), all.size()) << harp_last_error();
    EXPECT_EQ(go_on(whole.get()), expected);
    const Context one = create();
    ASSERT_EQ(harp_state_seq_set_data(one.get(), sequence.data(), sequence.size(), 0), sequence.size());
    EXPECT_EQ(go_on(one.get()), expected);

    // like llama.cpp's, a buffer may be larger than the state in it
    const size_t n_all = all.size(), n_sequence = sequence.size();
    all.resize(n_all + 100);
    sequence.resize(n_sequence + 100);
    const Context larger = create();
    ASSERT_EQ(harp_state_set_data(larger.get(), all.data(), all.size()), n_all) << harp_last_error();
    EXPECT_EQ(go_on(larger.get()), expected);
    ASSERT_EQ(harp_state_seq_set_data(larger.get(), sequence.data(), sequence.size(), 0), n_sequence)
        << harp_last_error();
    EXPECT_EQ(go_on(larger.get()), expected);

    EXPECT_EQ(harp_state_set_data(one.get(), all.data(), n_all / 2), 0U);
    EXPECT_NE(std::string(harp_last_error()), "");
    EXPECT_EQ(harp_state_seq_set_data(one.get(), sequence.data(), 20, 0), 0U);
    EXPECT_EQ(harp_memory_seq_pos_max(llama_get_memory(one.get()), 0), -1);
    EXPECT_EQ(decode(one.get(), once_upon_a_time), 0) << harp_last_error();
}

TEST_F(CApi, StateFilesHoldTheTwins) {
    const auto folder = std::filesystem::temp_directory_path() / ("harp-capi-" + std::to_string(::getpid()));
    std::filesystem::create_directory(folder);
    const std::string whole_file = folder / "whole.bin";
    const std::string sequence_file = folder / "sequence.bin";
    const Context source = create();
    const Continuation said = greedy_by_c(source.get(), 12);
    const std::vector<llama_token> & tokens = said.tokens;
    ASSERT_TRUE(harp_state_save_file(source.get(), whole_file.c_str(), tokens.data(), tokens.size()))
        << harp_last_error();
    const size_t n_bytes =
        harp_state_seq_save_file(source.get(), sequence_file.c_str(), 0, tokens.data(), tokens.size());
    EXPECT_EQ(n_bytes, std::filesystem::file_size(sequence_file));
    const std::string untold_file = folder / "without-tokens.bin";
    const Context without_tokens = create();
    ASSERT_TRUE(harp_state_save_file(source.get(), untold_file.c_str(), nullptr, 0)) << harp_last_error();
    size_t n_tokens = 7;
    EXPECT_TRUE(harp_state_load_file(without_tokens.get(), untold_file.c_str(), nullptr, 0, &n_tokens));
    EXPECT_EQ(n_tokens, 0U);
    EXPECT_EQ(harp_memory_seq_pos_max(llama_get_memory(without_tokens.get()), 0),
              harp_memory_seq_pos_max(llama_get_memory(source.get()), 0));
    EXPECT_EQ(decode(source.get(), {310}), 0);
    const std::vector<float> expected = row(source.get());

    const auto read = [&](llama_context * context, const std::string & file, bool whole, size_t room) {
        std::vector<llama_token> found(room);
        size_t n = 0;
        llama_token * out = room > 0 ? found.data() : nullptr;
        const bool good = whole ? harp_state_load_file(context, file.c_str(), out, room, &n)
                                : harp_state_seq_load_file(context, file.c_str(), 0, out, room, &n) > 0;
        found.resize(good ? (room > 0 ? n : 0) : 0);
        return std::make_pair(good ? n : 0, found);
    };
    for (const bool whole : {true, false}) {
        const std::string & file = whole ? whole_file : sequence_file;
        const Context other = create();
        (void)greedy_by_c(other.get(), 3);  // the loaded state will replace this
        EXPECT_EQ(read(other.get(), file, whole, 0).first, tokens.size()) << "the number alone";
        EXPECT_GT(harp_memory_seq_pos_max(llama_get_memory(other.get()), 0), -1) << "nothing is loaded for that";
        EXPECT_EQ(read(other.get(), file, whole, tokens.size()).second, tokens) << harp_last_error();
        EXPECT_EQ(decode(other.get(), {310}), 0);
        EXPECT_EQ(row(other.get()), expected);

        EXPECT_EQ(read(other.get(), file, whole, 3).first, 0U) << "no room for the tokens";
        EXPECT_EQ(read(other.get(), file, !whole, 64).first, 0U) << "of the other kind";
        EXPECT_EQ(read(other.get(), folder / "none.bin", whole, 64).first, 0U);
        {
            std::fstream damaged(file, std::ios::in | std::ios::out | std::ios::binary);
            damaged.seekp(static_cast<std::streamoff>(std::filesystem::file_size(file) / 2));
            const auto byte = static_cast<char>(~damaged.peek());
            damaged.put(byte);
        }
        EXPECT_EQ(read(other.get(), file, whole, 64).first, 0U) << "a byte of the state is another";
        EXPECT_NE(std::string(harp_last_error()).find("is damaged"), std::string::npos);
        std::filesystem::resize_file(file, std::filesystem::file_size(file) - 1);
        EXPECT_EQ(read(other.get(), file, whole, 64).first, 0U) << "cut off";
        std::filesystem::resize_file(file, 28);
        EXPECT_EQ(read(other.get(), file, whole, 64).first, 0U) << "cut off in its tokens";
        std::filesystem::resize_file(file, 3);
        EXPECT_EQ(read(other.get(), file, whole, 64).first, 0U) << "cut off in its header";
        EXPECT_NE(std::string(harp_last_error()), "");
    }
    EXPECT_EQ(harp_state_seq_save_file(source.get(), (folder / "no/such/folder").c_str(), 0, tokens.data(), 1), 0U);
    ASSERT_TRUE(harp_set_default_params(nullptr));  // HARP off: llama.cpp's own files
    const Context off = create();
    EXPECT_EQ(decode(off.get(), once_upon_a_time), 0);
    EXPECT_GT(
        harp_state_seq_save_file(off.get(), sequence_file.c_str(), 0, once_upon_a_time.data(), once_upon_a_time.size()),
        0U);
    llama_context_ptr plain(llama_init_from_model(model_, small_context(256)));
    std::vector<llama_token> found(16);
    size_t n = 0;
    EXPECT_GT(llama_state_seq_load_file(plain.get(), sequence_file.c_str(), 0, found.data(), found.size(), &n), 0U);
    EXPECT_EQ(read(source.get(), sequence_file, false, 64).first, 0U) << "llama.cpp's, without twins";
    std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace harp::testing
