#include "forward/row_order.h"

#include <algorithm>
#include <numeric>

namespace harp::forward {

namespace {

/// The rows of one sequence (or of one set of coupled sequences), in batch order.
struct Group {
    std::vector<llama_seq_id> sequences;  // sorted
    std::vector<size_t> rows;
    size_t n_used = 0;
};

struct GroupedRows {
    std::vector<Group> groups;
    std::vector<size_t> group_of;  // [batch.size()]

    explicit GroupedRows(const BatchRows & batch) {
        for (size_t i = 0; i < batch.size(); ++i) {
            const auto ids = batch.sequences(i);
            std::vector<llama_seq_id> sorted(ids.begin(), ids.end());
            std::sort(sorted.begin(), sorted.end());
            auto it =
                std::find_if(groups.begin(), groups.end(), [&](const Group & g) { return g.sequences == sorted; });
            if (it == groups.end()) it = groups.insert(groups.end(), Group{std::move(sorted), {}, 0});
            it->rows.push_back(i);
            group_of.push_back(static_cast<size_t>(it - groups.begin()));
        }
    }

    [[nodiscard]] bool is_used(size_t row) const {
        const Group & group = groups[group_of[row]];
        return group.n_used > 0 && row <= group.rows[group.n_used - 1];
    }
};

bool disjoint(const Group & a, const Group & b) {
    return std::none_of(a.sequences.begin(), a.sequences.end(), [&](llama_seq_id id) {
        return std::binary_search(b.sequences.begin(), b.sequences.end(), id);
    });
}

/// The groups that take part in the next micro-batch, found by one scan over the unused rows.
std::vector<Group *> pick_groups(const BatchRows & batch, GroupedRows & grouped, bool sequential, uint32_t n_ubatch) {
    std::vector<Group *> picked;
    llama_seq_id last = -1;
    for (size_t i = 0; i < batch.size() && picked.size() <= n_ubatch; ++i) {
        if (grouped.is_used(i)) continue;
        Group & group = grouped.groups[grouped.group_of[i]];
        const llama_seq_id id = batch.sequences(i).front();
        if (sequential && !picked.empty() && id != last + 1) continue;
        if (!std::all_of(picked.begin(), picked.end(), [&](Group * p) { return disjoint(*p, group); })) continue;
        picked.push_back(&group);
        last = id;
    }
    return picked;
}

void split_equal(const BatchRows & batch, bool sequential, uint32_t n_ubatch, std::vector<size_t> & order) {
    GroupedRows grouped(batch);
    while (order.size() < batch.size()) {
        const std::vector<Group *> picked = pick_groups(batch, grouped, sequential, n_ubatch);
        size_t n_each = std::max<size_t>(1, n_ubatch / picked.size());
        for (const Group * group : picked) n_each = std::min(n_each, group->rows.size() - group->n_used);
        for (Group * group : picked) {
            const auto begin = group->rows.begin() + static_cast<std::ptrdiff_t>(group->n_used);
            order.insert(order.end(), begin, begin + static_cast<std::ptrdiff_t>(n_each));
            group->n_used += n_each;
        }
    }
}

}  // namespace

std::vector<size_t> computation_order(const BatchRows & batch, SplitPolicy policy, uint32_t n_ubatch) {
    std::vector<size_t> order;
    order.reserve(batch.size());
    if (policy == SplitPolicy::in_order) {
        order.resize(batch.size());
        std::iota(order.begin(), order.end(), size_t{0});
    } else {
        split_equal(batch, policy == SplitPolicy::equal_sequential, n_ubatch, order);
    }
    return order;
}

}  // namespace harp::forward
