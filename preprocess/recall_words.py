"""Words of the recall corpus: names, the values of each relation, filler sentences (ASCII English).

No word is in two of the lists and the filler sentences contain none of them, whatever the case
(`tests/preprocess/test_recall_corpus.py` checks it), so that a value or a name always belongs to a
fact.
"""

from typing import Dict, List, NamedTuple


class Relation(NamedTuple):
    """A relation's sentences, with `{name}` and `{value}`, and its values; the value comes last."""

    statement: str
    question: str
    values: List[str]


NAMES = """
Abby Abel Abner Ada Adam Aidan Aldo Alec Alice Alma Alvin Amos Amy Andy Angus Anita Anna Anton Arno
Arthur Asher Astrid Axel Barney Basil Bella Benny Berta Bess Betsy Boris Brenda Bruno Bryan Byron
Caleb Carla Carlos Cathy Cecil Celia Claus Clive Colin Cora Cyril Cyrus Daisy Dana Daniel David
Deborah Dennis Derek Diana Dina Dirk Dora Doris Dylan Earl Ebba Edgar Edith Edna Edwin Eileen Elena
Eli Elias Elise Ella Ellen Elmer Elsa Emil Emma Enid Enzo Erik Erin Ernst Esther Ethan Eva Evan
Ezra Fanny Felix Finn Fiona Flora Floyd Frank Frida Gavin Gemma Gerda Gilda Gina Giles Glenn Greta
Guido Gustav Hanna Hannes Harvey Hazel Hector Heidi Helen Helga Henry Herman Hilda Homer Hugo Ian
Ida Igor Ines Inga Ingrid Irene Iris Irma Isaac Ivan Jacob Jana Janet Jason Jenny Jesse Joan Joel
Jonas Judith Julia Julius Karen Karl Kathy Keith Kevin Kurt Lara Larry Laura Leah Leila Lena Leo
Leon Leroy Lester Lewis Linda Lloyd Lotte Lucas Lucy Luigi Luke Lydia Mabel Magda Marco Maria Marta
Martin Matt Maude Mavis Megan Mia Mike Milo Mina Mira Moira Molly Mona Moses Myra Nadia Nancy Naomi
Ned Nell Nick Nigel Nils Nina Noah Nora Norman Olaf Olga Oliver Omar Oscar Oswald Otis Otto Owen
Pablo Paula Pedro Percy Perry Peter Petra Philip Quinn Rachel Ralph Ramon Rita Robin Roger Roland
Rosa Ross Ruben Rufus Rupert Ruth Sally Samson Sarah Selma Sigrid Silas Simon Sofia Sonia Stella
Susan Sven Tanya Tessa Theo Thelma Tilda Tobias Tracy Trudy Ulla Ulric Ursula Vera Victor Vince
Viola Wanda Wendy Wilma Xenia
""".split()

TRADES = """
paints sings bakes dances writes swims sails hunts weaves knits sews carves digs farms fishes
teaches preaches trades gambles juggles rides skates climbs cooks brews welds prints spins drums
mows ploughs prays begs spies guards cleans drives flies repairs translates studies fences wrestles
gardens plays votes draws smiles dreams travels
""".split()

# The value stands right after the name: a model has to learn to copy the word that followed the same
# word before, the simplest use of memory.
RELATIONS = {
    "does": Relation("{name} {value}.", "Do you remember?", TRADES),
}

FILLER: Dict[str, List[str]] = {
    "sentence": [
        "The {sky} was {look} {when}.",
        "It {fell} {amount} {when}.",
        "A {look} {thing} stood {place}.",
        "Somebody left a {thing} {place}.",
        "We walked {place} {when}.",
        "A letter about the {thing} came {when}.",
        "Nobody asked about the {thing} {when}.",
        "The {animal} slept {place} {when}.",
        "Two {look} {animal}s ran {place}.",
        "They sold the {thing} and bought a {look} one.",
        "There was {meal} for everyone {when}.",
        "The road {place} was {look} {when}.",
        "I could hear a {animal} {place}.",
        "She closed the window because it {fell}.",
        "He read an old story about a {animal} and a {thing}.",
        "Every {thing} {place} was {look}.",
    ],
    "sky": ["sky", "sea", "wind", "river", "field", "garden", "morning", "hill"],
    "look": [
        "grey",
        "bright",
        "cold",
        "quiet",
        "small",
        "dark",
        "green",
        "strange",
        "warm",
        "white",
    ],
    "when": [
        "in the evening",
        "last week",
        "before dinner",
        "after the storm",
        "all day",
        "on Sunday",
        "at noon",
        "that winter",
    ],
    "fell": ["rained", "snowed", "thundered", "hailed"],
    "amount": ["a little", "for an hour", "without a pause", "hard", "again"],
    "thing": [
        "chair",
        "lamp",
        "table",
        "clock",
        "basket",
        "wagon",
        "coat",
        "bottle",
        "mirror",
        "boat",
    ],
    "place": [
        "by the gate",
        "under the bridge",
        "near the old wall",
        "behind the house",
        "along the path",
        "in the wood",
        "beside the well",
        "at the corner",
    ],
    "animal": ["dog", "cat", "cow", "goat", "crow", "hen", "duck", "bear"],
    "meal": ["soup", "bread", "tea", "cake", "cheese", "fruit"],
}
