#include "support/text.h"

#include <algorithm>

#include "forward/batch_rows.h"
#include "support/agreement.h"

namespace harp::testing {

llama_token token_at(llama_pos place) {
    return place == 0 ? 1 : 259 + (place * place * 7 + 3) % 240;
}

std::vector<llama_token> text_of(llama_pos begin, llama_pos end) {
    std::vector<llama_token> tokens;
    for (llama_pos place = begin; place < end; ++place) tokens.push_back(token_at(place));
    return tokens;
}

void read(ForwardPass & pass, llama_pos begin, llama_pos end, llama_seq_id sequence) {
    const auto n_batch = static_cast<llama_pos>(pass.n_batch());
    for (llama_pos first = begin; first < end; first += n_batch) {
        forward::BatchRows rows;
        for (llama_pos place = first; place < std::min(end, first + n_batch); ++place) {
            rows.add(token_at(place), place, {&sequence, 1}, /*is_output=*/false);
        }
        pass.decode(rows.view());
    }
}

std::vector<Step> go_on(ForwardPass & pass, llama_pos begin, llama_pos end, llama_seq_id sequence, llama_pos shift) {
    std::vector<Step> steps;
    for (llama_pos place = begin; place < end; ++place) {
        decode(pass, {token_at(place)}, place + shift, sequence);
        steps.push_back({row(pass), pass.step(-1)});
        EXPECT_EQ(pass.check_invariant(), "") << "after place " << place;
    }
    return steps;
}

void expect_same_steps(const std::vector<Step> & a, const std::vector<Step> & b, double tolerance) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
        SCOPED_TRACE("step " + std::to_string(i));
        expect_same_step(a[i].logits, a[i].record, b[i].logits, b[i].record, tolerance);
    }
}

void expect_agreement(const std::vector<Step> & a, const std::vector<Step> & b, double most, size_t n_parted) {
    ASSERT_EQ(a.size(), b.size());
    Agreement agreement;
    for (size_t i = 0; i < a.size(); ++i) agreement.add(a[i].logits, a[i].record, b[i].logits, b[i].record);
    agreement.expect(a.size() - n_parted, most);
}

}  // namespace harp::testing
