"""The words of the small world, and the forms of its sentences and questions; no third-party text is in here."""

COLOURS = tuple("red blue green black white yellow brown purple pink grey golden silver".split())
THINGS = tuple(
    "ball cup book lamp hat coat key drum kite rope box bag clock chair bowl knife plate ring scarf flute pen shoe"
    " spoon basket bottle brush candle coin comb doll fan flag hammer jar ladder mirror needle net pot wheel".split()
)
PLACES = tuple(
    "garden kitchen attic barn cellar market school station harbour tower mill church forest park hall office shop"
    " tent stable meadow".split()
)
MOODS = tuple("happy sad angry calm tired proud afraid bored hungry thirsty".split())
TIMES = tuple("dawn noon dusk midnight breakfast lunch dinner sunset".split())
PEOPLE = tuple(
    "anna ben cara dan eva finn gina hugo iris jack kate leo mia nick olga paul quinn rosa sam tina ugo vera walt xena"
    " yan zoe adam bella carl dora emil fay gus hana ivan jane karl lena max nora otto pia ralf sara tom uma vic wanda"
    " amir bruno clara david elsa frank greta henry ida jonas kim luis marta nils oscar peter rita simon tara ulf"
    " viola willy alma boris celia doris ezra fiona george helen igor julia kurt lara mona noah olive pedro".split()
)
NEW_PEOPLE = tuple(
    "rena stefan thea urban violet werner yves zelda albert berta conrad edith felix gloria".split()
)
POOLS = {"colour": COLOURS, "thing": THINGS, "place": PLACES, "mood": MOODS, "time": TIMES}
EXTRAS = ("place", "mood", "time")

# Sentence forms: the last one or two of each list are held out (used only in the split "test_wordings").
OWNING = (
    "{p} has a {c} {o}",
    "{p} keeps a {c} {o}",
    "a {c} {o} belongs to {p}",
    "the {c} {o} is owned by {p}",
    "{p} holds the {c} {o}",
    "there is a {c} {o} that {p} owns",
    "{p} carries a {c} {o}",
    "with {p} is a {c} {o}",
)
TELLING = {
    "thing": (
        "{p} has a {v}",
        "a {v} belongs to {p}",
        "{p} keeps a {v}",
        "the {v} is owned by {p}",
        "{p} carries a {v}",
    ),
    "colour": (
        "{p} has something {v}",
        "what {p} has is {v}",
        "something {v} belongs to {p}",
        "{p} carries something {v}",
    ),
    "place": (
        "{p} is in the {v}",
        "{p} stays in the {v}",
        "in the {v} is {p}",
        "{p} waits in the {v}",
        "the {v} is where {p} is",
    ),
    "mood": ("{p} is {v}", "{p} feels {v}", "{v} is how {p} feels", "{p} seems {v}"),
    "time": ("{p} came at {v}", "at {v} {p} came", "{v} is when {p} came", "{p} arrived at {v}"),
}
TAILS = {"place": ("{s} in the {v}", "in the {v} {s}"), "time": ("{s} at {v}", "at {v} {s}")}
DENYING = ("{p} is not {v}", "{p} does not feel {v}", "not {v} is how {p} feels", "{p} does not seem {v}")
ASKING = {
    "thing": (
        "does {p} have the {v} ?",
        "is the {v} with {p} ?",
        "does the {v} belong to {p} ?",
        "is {p} the owner of the {v} ?",
    ),
    "colour": (
        "does {p} have something {v} ?",
        "is the thing of {p} {v} ?",
        "is it something {v} that {p} has ?",
        "is {p} with something {v} ?",
    ),
    "place": (
        "is {p} in the {v} ?",
        "does {p} stay in the {v} ?",
        "is the {v} where {p} is ?",
        "does {p} wait in the {v} ?",
    ),
    "mood": ("is {p} {v} ?", "does {p} feel {v} ?", "is {v} how {p} feels ?", "does {p} seem {v} ?"),
    "time": (
        "did {p} come at {v} ?",
        "was it at {v} that {p} came ?",
        "is {v} when {p} came ?",
        "did {p} arrive at {v} ?",
    ),
}
WONDERING = {
    "thing": (
        "what does {p} have ?",
        "which thing belongs to {p} ?",
        "what is with {p} ?",
        "what does {p} carry ?",
    ),
    "colour": (
        "what colour is the thing of {p} ?",
        "which colour has {p} ?",
        "what colour does {p} have ?",
        "which colour is with {p} ?",
    ),
    "place": ("where is {p} ?", "in which place is {p} ?", "where does {p} stay ?", "where does {p} wait ?"),
    "mood": ("how does {p} feel ?", "how is {p} ?", "in which mood is {p} ?", "how does {p} seem ?"),
    "time": (
        "when did {p} come ?",
        "at which time did {p} come ?",
        "when was it that {p} came ?",
        "when did {p} arrive ?",
    ),
}

# Ambiguous words: two senses, each with a name and six cues.
SENSES = {
    "bank": (
        ("ground", "water shore boat fish mud reeds"),
        ("money", "loan cash vault cheque teller account"),
    ),
    "bat": (("animal", "cave wings fur roof insects moth"), ("tool", "game pitch team player wicket helmet")),
    "spring": (
        ("season", "blossom april rain seeds birds nest"),
        ("metal", "wire mattress steel bounce toy coil"),
    ),
    "seal": (
        ("animal", "ice whale beach flippers waves rocks"),
        ("paper", "wax letter envelope stamp document king"),
    ),
    "crane": (
        ("animal", "marsh feathers eggs lake beak heron"),
        ("tool", "bricks builder concrete hook cargo scaffold"),
    ),
    "pitcher": (
        ("vessel", "lemonade milk juice tray glass cream"),
        ("sport", "inning batter stadium coach umpire mound"),
    ),
    "mouse": (
        ("animal", "cheese cat hole tail trap whiskers"),
        ("tool", "screen keyboard cable click desk laptop"),
    ),
    "organ": (
        ("body", "heart doctor blood surgeon nurse kidney"),
        ("music", "pipes hymn choir pedals concert tune"),
    ),
    "pupil": (
        ("child", "teacher lesson exam class homework chalk"),
        ("body", "eye lens vision light lashes glare"),
    ),
    "trunk": (
        ("tree", "bark branch leaves roots oak squirrel"),
        ("box", "luggage car tyre journey driver motor"),
    ),
    "match": (
        ("fire", "flame smoke stove fuse torch ash"),
        ("sport", "goal score referee league fans whistle"),
    ),
    "palm": (
        ("body", "finger thumb wrist skin fist sweat"),
        ("tree", "island coconut sand desert dates oasis"),
    ),
}
MENTIONING = (
    "{p} saw the {w} and the {x}",
    "near the {x} {p} found the {w}",
    "the {w} and the {x} pleased {p}",
    "{p} spoke of the {x} and the {w}",
    "the {x} made {p} think of the {w}",
    "{p} drew the {w} beside the {x}",
)

YES_NO = ("no", "yes")
# name -> (labels, words, template, metric); the label order and templates follow the paper's scripts.
FAMILIES = {
    "boolq": (("no", "yes"), ("no", "yes"), "hypothesis: {question} premise: {passage}", "accuracy"),
    "multirc": (
        ("wrong", "right"),
        ("no", "yes"),
        "question: {question} answer: {answer}. paragraph: {passage}",
        "f1a_em",
    ),
    "rte": (
        ("entailment", "not_entailment"),
        ("yes", "no"),
        "sentence1: {premise} sentence2: {hypothesis}",
        "accuracy",
    ),
    "cb": (
        ("entailment", "contradiction", "neutral"),
        ("yes", "no", "maybe"),
        "hypothesis: {hypothesis} premise: {premise}",
        "accuracy_f1",
    ),
    "wic": (("different", "same"), ("no", "yes"), "{sentence1} {sentence2} word: {word}", "accuracy"),
    "color": (
        ("different", "same"),
        ("no", "yes"),
        "sentence1: {sentence1} sentence2: {sentence2}",
        "accuracy",
    ),
    "owner": (
        ("different", "same"),
        ("no", "yes"),
        "sentence1: {sentence1} sentence2: {sentence2}",
        "accuracy",
    ),
}
