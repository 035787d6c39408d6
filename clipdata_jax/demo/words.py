"""The words that captions are made of.

No phrase about a background or the weather holds a noun of `NOUNS` or a word of `COLOURS`, so that
whatever object or colour a caption names can be checked against the image's facts.
"""

Forms = tuple[tuple[str, str], ...]
Phrases = tuple[str, ...]

# Each kind of object: its names, singular and plural, the usual one first.
NOUNS: dict[str, Forms] = {
    "ball": (("ball", "balls"), ("toy ball", "toy balls"), ("bouncy ball", "bouncy balls")),
    "balloon": (("balloon", "balloons"), ("party balloon", "party balloons")),
    "bird": (("bird", "birds"), ("songbird", "songbirds")),
    "boat": (("boat", "boats"), ("sailboat", "sailboats"), ("sailing boat", "sailing boats")),
    "butterfly": (("butterfly", "butterflies"),),
    "car": (("car", "cars"), ("automobile", "automobiles"), ("motor car", "motor cars")),
    "cat": (("cat", "cats"), ("kitty", "kitties"), ("pussycat", "pussycats")),
    "cup": (("cup", "cups"), ("mug", "mugs"), ("coffee mug", "coffee mugs")),
    "fish": (("fish", "fish"), ("reef fish", "reef fish")),
    "flower": (("flower", "flowers"), ("blossom", "blossoms"), ("bloom", "blooms")),
    "house": (("house", "houses"), ("cottage", "cottages"), ("home", "homes")),
    "kite": (("kite", "kites"), ("paper kite", "paper kites")),
    "moon": (("moon", "moons"), ("crescent moon", "crescent moons"), ("crescent", "crescents")),
    "mushroom": (("mushroom", "mushrooms"), ("toadstool", "toadstools")),
    "pine": (("pine tree", "pine trees"), ("fir", "firs"), ("conifer", "conifers")),
    "robot": (("robot", "robots"), ("toy robot", "toy robots"), ("android", "androids")),
    "rocket": (("rocket", "rockets"), ("spaceship", "spaceships"), ("space rocket", "space rockets")),
    "star": (("star", "stars"), ("five-pointed star", "five-pointed stars")),
    "tree": (("tree", "trees"), ("leafy tree", "leafy trees"), ("oak", "oaks")),
    "umbrella": (("umbrella", "umbrellas"), ("parasol", "parasols")),
}

COLOURS: dict[str, Phrases] = {
    "black": ("black", "jet-black"),
    "blue": ("blue", "cobalt"),
    "brown": ("brown", "chestnut"),
    "green": ("green", "emerald"),
    "orange": ("orange", "tangerine"),
    "pink": ("pink", "rosy"),
    "purple": ("purple", "violet"),
    "red": ("red", "crimson", "scarlet"),
    "white": ("white", "ivory"),
    "yellow": ("yellow", "lemon"),
}

SIZES: dict[str, Phrases] = {"small": ("small", "tiny", "little"), "medium": (), "big": ("big", "large", "huge")}

COUNTS: dict[int, Phrases] = {
    1: ("a", "a", "a", "one", "a single"),
    2: ("two", "two", "two", "a pair of", "a couple of"),
    3: ("three", "three", "three", "a trio of", "a group of three"),
}

RELATIONS: dict[str, Phrases] = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "high above"),
    "below": ("below", "under", "beneath"),
}
OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}
BESIDE: Phrases = ("beside", "next to", "near", "by")

# Where a thing is, by background: whatever it does, standing (or swimming), and in the air.
WHERE: dict[str, dict[str, Phrases]] = {
    "beach": {
        "any": ("at the beach", "at the seaside", "on a beach holiday"),
        "ground": ("on the beach", "on the sand", "on a sandy shore"),
        "air": ("over the beach", "above the sand", "in the air over a sandy shore"),
    },
    "city": {
        "any": ("in the city", "downtown", "in town"),
        "ground": ("on a city street", "in the street", "on the road"),
        "air": ("over the city", "above the rooftops", "high over the town"),
    },
    "desert": {
        "any": ("in the desert", "among the dunes", "in a dry land"),
        "ground": ("on a sand dune", "on desert sand", "in the desert heat"),
        "air": ("over the desert", "above the dunes", "in the desert air"),
    },
    "meadow": {
        "any": ("in the countryside", "on a summer day", "in a grassy landscape"),
        "ground": ("on a meadow", "in a grassy field", "on the lawn"),
        "air": ("over a meadow", "above the grass", "over a grassy field"),
    },
    "night": {
        "any": ("at night", "on a starry night", "in the dark"),
        "ground": ("under a starry sky", "on a hill at night", "at midnight"),
        "air": ("in the night sky", "in a starry sky", "up in the dark sky"),
    },
    "room": {
        "any": ("in a room", "indoors", "inside a room"),
        "ground": ("on the floor", "on a wooden floor", "in the living room"),
        "air": ("in front of a wall", "against the wall", "in the nursery"),
    },
    "sea": {
        "any": ("at sea", "out at sea", "on the open ocean"),
        "ground": ("on the water", "among the waves", "on the sea"),
        "air": ("over the sea", "above the waves", "over the ocean"),
    },
    "snow": {
        "any": ("in winter", "on a winter day", "in the cold"),
        "ground": ("on a snowy field", "in the snow", "in deep snow"),
        "air": ("over a snowy field", "above the snow", "in the winter sky"),
    },
    "sunset": {
        "any": ("at sunset", "at dusk", "in the evening"),
        "ground": ("under an evening sky", "in the evening glow", "in the last light of day"),
        "air": ("in the evening sky", "in a glowing sky", "in the sunset sky"),
    },
    "underwater": {
        "any": ("under water", "underwater", "deep under the sea"),
        "ground": ("on the sea bed", "on the ocean floor", "at the bottom of the sea"),
        "air": ("in deep water", "in the deep sea", "floating in the sea"),
    },
}

SCENES: dict[str, Phrases] = {
    "beach": ("beach scene", "seaside view", "sandy beach"),
    "city": ("city scene", "urban view", "street scene"),
    "desert": ("desert scene", "desert landscape", "view of the dunes"),
    "meadow": ("meadow scene", "summer landscape", "country view"),
    "night": ("night scene", "starry night", "view at night"),
    "room": ("indoor scene", "room interior", "view of a room"),
    "sea": ("seascape", "ocean view", "view of the sea"),
    "snow": ("winter scene", "snowy landscape", "winter landscape"),
    "sunset": ("sunset scene", "evening landscape", "view at dusk"),
    "underwater": ("underwater scene", "underwater world", "view of the sea bed"),
}

SKIES: dict[str, Phrases] = {
    "": (),
    "clouds": ("under a cloudy sky", "on a cloudy day", "with clouds in the sky"),
    "sun": ("on a sunny day", "in the sunshine", "in bright sun"),
    "snowfall": ("in falling snow", "while it snows", "with snowflakes in the air"),
}

MEDIA: Phrases = ("picture", "photo", "drawing", "illustration", "painting", "image", "cartoon")
PRAISE: Phrases = ("cute", "lovely", "pretty", "nice", "beautiful")
TAILS: Phrases = (" - free clip art", " | stock illustration", " (drawing)", " - wall art print", " for kids")
OPENINGS: Phrases = ("Look, ", "We saw ", "My drawing of ", "Here we see ", "You can see ")
