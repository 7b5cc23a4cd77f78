// Memories that behave like each kind of llama.cpp's, without a model. The content of a cell is a text that tests can
// compare.
#pragma once

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "forward/memory.h"

namespace harp::testing {

/// | kind | like |
/// |---|---|
/// | unified | one array of cells that sequences share |
/// | streams | each sequence has its own cells; only whole sequences can be copied |
/// | sliding window | streams, and a second cache with the last n_swa positions, which first() reports |
/// | recurrent | one state per sequence; no part can be removed |
/// | hybrid | streams and a state; removal is decided by the state first |
class FakeMemory final : public forward::Memory {
  public:
    enum class Kind { unified, streams, sliding_window, recurrent, hybrid };
    static constexpr int32_t window = 6;

    /// A range as in llama.cpp, for positions that are not negative.
    struct Range {
        llama_pos p0, p1;
        bool operator()(llama_pos p) const { return p >= p0 && (p1 < 0 || p < p1); }
    };

    explicit FakeMemory(Kind kind) : fake_kind_(kind) {
        kind_.shares_cells = kind == Kind::unified;
        kind_.is_recurrent = kind == Kind::recurrent || kind == Kind::hybrid;
        kind_.can_shift = kind != Kind::sliding_window;
        kind_.n_swa = kind == Kind::sliding_window ? window : 0;
    }
    [[nodiscard]] const forward::MemoryKind & kind() const override { return kind_; }

    /// Like llama_decode: adds a cell.
    void decode(llama_seq_id id, llama_pos position, std::string content) {
        if (has_cells()) cells_.push_back({position, content, {id}});
        if (kind_.n_swa > 0) {
            window_.push_back({position, content, {id}});
            std::erase_if(window_,
                          [&](const Cell & c) { return c.ids.contains(id) && c.position <= position - window; });
        }
        if (kind_.is_recurrent) states_[id] = {position, states_[id].second + content + " "};
    }
    /// Contents of a sequence's cells by position, or its state.
    [[nodiscard]] std::string contents(llama_seq_id id) const {
        if (!has_cells()) return states_.contains(id) ? states_.at(id).second : "";
        return text_of(cells_, id);
    }
    [[nodiscard]] std::string window_contents(llama_seq_id id) const { return text_of(window_, id); }
    [[nodiscard]] std::string state_contents(llama_seq_id id) const {
        return states_.contains(id) ? states_.at(id).second : "";
    }

    bool remove(llama_seq_id id, llama_pos p0, llama_pos p1) override {
        const Range gone{p0, p1};
        if (kind_.is_recurrent && states_.contains(id)) {
            const llama_pos last = states_[id].first;
            if (std::max(p0, 0) == 0 && gone(last)) {
                states_.erase(id);
            } else if (gone(last) || (p1 > 0 && p1 <= last && p0 < p1)) {
                return false;
            }
        }
        for (auto * cache : {&cells_, &window_}) {
            for (Cell & cell : *cache) {
                if (gone(cell.position)) cell.ids.erase(id);
            }
            std::erase_if(*cache, [](const Cell & cell) { return cell.ids.empty(); });
        }
        return true;
    }
    void copy(llama_seq_id source, llama_seq_id destination, llama_pos p0, llama_pos p1) override {
        const Range wanted{p0, p1};
        if (states_.contains(source)) states_[destination] = states_[source];
        if (kind_.shares_cells) {
            for (Cell & cell : cells_) {
                if (cell.ids.contains(source) && wanted(cell.position)) cell.ids.insert(destination);
            }
            return;
        }
        for (auto * cache : {&cells_, &window_}) {
            std::erase_if(*cache, [&](const Cell & cell) { return cell.ids.contains(destination); });
            const std::vector<Cell> before = *cache;
            for (const Cell & cell : before) {
                if (cell.ids.contains(source)) cache->push_back({cell.position, cell.content, {destination}});
            }
        }
    }
    void add(llama_seq_id id, llama_pos p0, llama_pos p1, llama_pos delta) override {
        change(id, p0, p1, [delta](llama_pos p) { return p + delta; });
    }
    void divide(llama_seq_id id, llama_pos p0, llama_pos p1, int divisor) override {
        change(id, p0, p1, [divisor](llama_pos p) { return p / divisor; });
    }
    [[nodiscard]] llama_pos first(llama_seq_id id) const override {
        if (kind_.is_recurrent) return last(id);
        const std::vector<llama_pos> positions = positions_of(kind_.n_swa > 0 ? window_ : cells_, id);
        return positions.empty() ? -1 : *std::min_element(positions.begin(), positions.end());
    }
    [[nodiscard]] llama_pos last(llama_seq_id id) const override {
        if (kind_.is_recurrent) return states_.contains(id) ? states_.at(id).first : -1;
        const std::vector<llama_pos> positions = positions_of(kind_.n_swa > 0 ? window_ : cells_, id);
        return positions.empty() ? -1 : *std::max_element(positions.begin(), positions.end());
    }

    // Saved states are numbers of snapshots. As in llama.cpp, an empty one leaves the existing content alone.
    [[nodiscard]] size_t saved_size(llama_seq_id /*id*/, llama_state_seq_flags /*flags*/) override { return 4; }
    size_t save(llama_seq_id id, std::span<uint8_t> to, llama_state_seq_flags flags) override {
        const auto number = static_cast<uint32_t>(snapshots_.size());
        snapshots_.push_back({own(cells_, id), own(window_, id), states_, id, flags});
        for (size_t i = 0; i < 4; ++i) to[i] = static_cast<uint8_t>(number >> (8 * i));
        return 4;
    }
    size_t load(llama_seq_id id, std::span<const uint8_t> from, llama_state_seq_flags flags) override {
        uint32_t number = 0;
        for (size_t i = 0; i < 4; ++i) number |= static_cast<uint32_t>(from[i]) << (8 * i);
        if (number >= snapshots_.size() || snapshots_[number].flags != flags) return 0;
        const Snapshot & snapshot = snapshots_[number];
        const bool is_partial = flags != 0;
        const auto put = [&](std::vector<Cell> & cache, const std::vector<Cell> & saved) {
            if (saved.empty()) return;
            for (Cell & cell : cache) cell.ids.erase(id);
            std::erase_if(cache, [](const Cell & cell) { return cell.ids.empty(); });
            for (const Cell & cell : saved) cache.push_back({cell.position, cell.content, {id}});
        };
        if (!is_partial) put(cells_, snapshot.cells);
        put(window_, snapshot.window);
        if (snapshot.states.contains(snapshot.id)) states_[id] = snapshot.states.at(snapshot.id);
        return 4;
    }

  private:
    struct Cell {
        llama_pos position;
        std::string content;
        std::set<llama_seq_id> ids;
    };
    struct Snapshot {
        std::vector<Cell> cells, window;
        std::map<llama_seq_id, std::pair<llama_pos, std::string>> states;
        llama_seq_id id;
        llama_state_seq_flags flags;
    };
    [[nodiscard]] bool has_cells() const { return fake_kind_ != Kind::recurrent; }
    static std::vector<Cell> own(const std::vector<Cell> & cache, llama_seq_id id) {
        std::vector<Cell> cells;
        std::copy_if(cache.begin(), cache.end(), std::back_inserter(cells),
                     [id](const Cell & cell) { return cell.ids.contains(id); });
        return cells;
    }
    static std::vector<llama_pos> positions_of(const std::vector<Cell> & cache, llama_seq_id id) {
        std::vector<llama_pos> positions;
        for (const Cell & cell : own(cache, id)) positions.push_back(cell.position);
        return positions;
    }
    static std::string text_of(const std::vector<Cell> & cache, llama_seq_id id) {
        std::vector<Cell> cells = own(cache, id);
        std::stable_sort(cells.begin(), cells.end(),
                         [](const Cell & a, const Cell & b) { return a.position < b.position; });
        std::string text;
        for (const Cell & cell : cells) text += std::to_string(cell.position) + ":" + cell.content + " ";
        return text;
    }
    template <typename Change>
    void change(llama_seq_id id, llama_pos p0, llama_pos p1, Change change) {
        const Range wanted{p0, p1};
        for (auto * cache : {&cells_, &window_}) {
            for (Cell & cell : *cache) {
                if (cell.ids.contains(id) && wanted(cell.position)) cell.position = change(cell.position);
            }
            std::erase_if(*cache, [](const Cell & cell) { return cell.position < 0; });
        }
        if (states_.contains(id) && wanted(states_[id].first)) states_[id].first = change(states_[id].first);
    }

    Kind fake_kind_;
    forward::MemoryKind kind_;
    std::vector<Cell> cells_, window_;
    std::map<llama_seq_id, std::pair<llama_pos, std::string>> states_;  // last position, everything that was decoded
    std::vector<Snapshot> snapshots_;
};

}  // namespace harp::testing
