"""The stages of a build, in order. Each takes records and gives records; `build.py` shows how they follow one another.

    ingest      files -> sources: normalised clips
    faces       footage -> footage with the faces that a detector finds, or with a matte
    identities  footage -> footage of one person, with an embedding
    select      footage -> footage with its best still
    attributes  subjects -> subjects with the word that the text uses for them
    scenes      shots -> clips in new places
    portraits   shots -> new stills, or the best one
    animate     stills -> clips
    negatives   gallery -> clips of others, by the three stages above
    verify      clips -> clips that look like who they should be; the others again with another seed
    questions   clips -> clips with questions and answers
    refine      answers -> answers with the name in them
    assemble    rows -> the dataset folder

A stage turns its records into `engine.Task`s: a function of its module (`make_...`) with paths and plain values, which
may run in any process that has the backends.
"""

from .animate import animate
from .assemble import assemble
from .attributes import attributes
from .common import Build
from .faces import faces
from .identities import identities
from .ingest import ingest
from .negatives import negatives
from .portraits import portraits
from .questions import questions
from .refine import refine
from .scenes import scenes
from .select import select
from .verify import verify

STAGES = (
    "ingest", "faces", "identities", "select", "attributes", "scenes", "portraits", "animate", "negatives", "verify",
    "questions", "refine", "assemble",
)  # fmt: skip

__all__ = [
    "STAGES",
    "Build",
    "animate",
    "assemble",
    "attributes",
    "faces",
    "identities",
    "ingest",
    "negatives",
    "portraits",
    "questions",
    "refine",
    "scenes",
    "select",
    "verify",
]
