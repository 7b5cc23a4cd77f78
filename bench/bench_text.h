// The text for forward_bench: a context, which may be repeated, and an answer that does not occur in it.
#pragma once

namespace harp::bench {

inline constexpr const char * context_text =
    "The harbour lay quiet before sunrise. A fishing boat came in with its lamps still lit, and an old man on the quay "
    "caught the rope without looking up from his pipe. He had counted boats here for forty years: which ones came back "
    "early, which came back late, and the two that had not come back at all. When the sun rose over the breakwater, "
    "the "
    "market opened, and the first buyers asked what the night had brought. There was cod, and a crate of crabs that "
    "nobody had ordered, and one fish so large that three men carried it. The price was argued over for as long as it "
    "took the ice to melt. Then the carts left for the town, the gulls came down for what was left, and the women who "
    "mended the nets sat along the wall with their backs to the wind and spoke of the weather, which would turn. ";

inline constexpr const char * answer_text =
    "By noon the sky had gone the colour of slate. The harbour master walked out to the end of the mole, read the "
    "instruments twice, and hoisted the second cone. Nobody needed to be told. Hatches were closed, a ferry that "
    "should "
    "have sailed at one stayed where it was, and the school sent its children home along the upper road. Only the "
    "doctor, whose patients lived on the island, stood on the landing stage with her bag and asked each skipper in "
    "turn "
    "whether he would take her across. The fourth said yes, provided she could steer. She laughed, took off her hat, "
    "and "
    "climbed down the ladder. People remember that crossing for different reasons: some because the mast broke, some "
    "because of the child that was born that night, and the skipper because he was never paid. He tells it every "
    "winter, "
    "and every winter the waves are a little higher, the night a little darker, and the doctor a little better at the "
    "helm than he was himself. ";

}  // namespace harp::bench
