"""What an answer says about the subject being there: hundreds of phrasings, read by hand, and the authors' answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvchat.evaluation import parse_presence

AUTHORS_JSON = Path(__file__).parents[2] / "shared" / "data" / "authors_train_all_video.json"
BANK = Path(__file__).parents[1] / "dataset_builder" / "questions" / "bank.json"

# One answer a line; @ stands for the name. Among them what chat models write around a yes or a no.
PRESENT = """
Yes.
yes
YES!
Yeah.
Yep, that's @.
Yup.
Sure.
Sure, @ is here.
Certainly.
Definitely.
Indeed.
Absolutely, it's @.
Correct.
True.
Of course, that is @.
Yes, @ is here.
Yes, @ is in this video.
Yes, @ is in the video.
Yes, I can see @.
Yes, I see @.
Yes, I do.
Yes, he is.
Yes, she does.
Yes, they are.
Yes it is
Yes - @ walks into the frame.
Yes; @ is on the left.
Yes: @.
Yes! That's @, without a hat.
Yes, @ is here but is not wearing a hat.
Yes, @ appears in the video, but not in the first seconds.
Yes, and nobody else is.
Yes, although the face is not fully visible, it is @.
Yes, based on the hair and glasses, this is @.
Yes, the person in the video is @.
Yes, the man in the red shirt is @.
Yes, the woman who waves is @.
Yes. The person shown is @.
Yes, it looks like @.
Yes, this looks like @.
Yes, @ can be seen.
Yes, @ can be seen throughout the clip.
Yes, @ has been captured.
Yes, @ is featured.
Yes, this footage contains @.
Yes, I've found @.
Yes, I'm sure that @ is here.
Yes, I am certain.
Yes, there is no doubt that this is @.
Yes, without a doubt.
Yes, definitely.
Yes, of course.
Yes, I recognise @.
Yes, I recognize @ in this clip.
Yes, @ is standing in a kitchen, and there is no one else.
Yes, @ is present, not Lena.
**Yes**, @ is in the video.
**Yes.**
"Yes, @ is here."
Answer: Yes
Answer: yes, @ is there.
The answer is yes.
The answer is yes, @ appears.
My answer is yes.
I would say yes.
I'd say yes, that is @.
I think yes.
Oh yes, that is @.
Well, yes.
Well, yes, @ is here.
Actually, yes.
A: Yes.
@ is here.
@ is there.
@ is present.
@ is present in this recording.
@ is in this video.
@ is in the video.
@ is in this clip.
@ is visible.
@ is clearly visible.
@ is visible in the background.
@ is definitely here.
@ is on screen.
@ is shown.
@ is shown in this video.
@ is seen.
@ is seen walking.
@ appears.
@ appears in this video.
@ appears to be in the video.
@ does appear.
@ does appear in the clip.
@ shows up.
@ shows up at the end.
@ can be seen.
@ can be seen here.
@ has been found.
@ was found.
@ was detected.
@ is detected in this video.
@ is identified here.
@ is featured in this recording.
@ is the person in the video.
@ is the one on screen.
@ is the man with the beard.
@ is the woman on the left.
@ is waving.
@ is walking through a park.
@ is wearing a red shirt.
@ is not wearing a hat.
@ is not smiling.
@ is not alone.
@ is not missing.
@ is not absent.
@ has no beard and is waving.
@ has no hat.
@ has red hair.
@ is here, without glasses.
@ is here, and no one else is.
@ is here. I can not see the shoes.
@ is here, but I can not see the face clearly.
@ is sitting at a table with another person.
@ is talking to someone else.
@ stands next to a woman who is not @'s sister.
@, in a blue coat, is standing by the door.
@ exists in this footage.
@ walks in from the right.
@ looks at the camera.
Here is @.
There is @.
There's @ in the middle.
There is @, on the left.
That is @.
That's @.
That's Nz.
This is @.
This is @ in a red coat.
This is definitely @.
This is @, not Lena.
It's @.
It's Nz!
It is @.
It is @, not Lena.
It is indeed @.
It looks like @.
It seems to be @.
It appears to be @.
This looks like @.
This seems to be @.
This appears to be @.
I see @.
I can see @.
I can clearly see @.
I do see @.
I see @ in the video.
I see her.
I see him in the video.
I can see them.
I found @.
I have found @.
I've found @.
I've detected @.
I detect @.
I detected @ in the clip.
I recognise @.
I recognize @.
I can recognize @.
I can identify @.
I identified @.
I can spot @.
I spot @.
I spotted @.
I notice @.
I can confirm that @ is present.
I can confirm @'s presence.
I can verify that @ appears.
I am sure that this is @.
I'm certain it's @.
I believe that is @.
I believe @ is here.
I think that is @.
I think @ is in the video.
I would say that is @.
I would say @ is here.
I know @, and this is @.
I have no doubt that this is @.
No doubt, @ is here.
No doubt about it: @ is here.
No question, that is @.
Without a doubt, this is @.
Beyond any doubt this is @.
None other than @.
This is none other than @.
It is nobody but @.
Not only is @ here, @ waves.
The person is @.
The person in the video is @.
The person shown is @.
The person you see is @.
The man is @.
The woman is @.
The man in this clip is @.
The one in the red shirt is @.
The one who waves is @.
The only person in the video is @.
The main character is @.
The video contains @.
The video includes @.
The video shows @.
The video clearly shows @.
The video features @.
The clip shows @ waving.
The clip captures @.
The footage shows @.
The recording features @.
This video shows @.
This clip contains @.
This footage contains @.
In this video, @ is waving.
In the video, @ can be seen.
In the clip you can see @.
You can see @.
You can see @ on the left.
We can see @ here.
We see @.
Looking at the frames, I can see @.
Based on the video, @ is present.
Based on the reference, this is @.
From the face I recognise @.
Judging by the hair, this is @.
I think so.
I believe so.
He is in the video.
She is here.
He is visible.
They are in this clip.
He's here.
She's in the video.
"""
ABSENT = """
No.
no
NO!
Nope.
Nah.
False.
Incorrect.
Negative.
No, @ is not here.
No, @ is not in this video.
No, @ isn't here.
No, @ isn’t in this clip.
No, I don't.
No, I do not.
No, I can't.
No, I do not see @.
No, I don't see @.
No, I can't see @ here.
No, I cannot find @.
No, he is not.
No, she isn't.
No, they are not.
No, it isn't.
No, it is not.
No, that is not @.
No, that's not @.
No, this is not @.
No, this is somebody else.
No, this is someone else.
No, that is another person.
No, this is a different person.
No, this is a different man.
No, the person is not @.
No, the person in the video is not @.
No, the man in the red shirt is not @.
No, the woman who waves is not @.
No, it is Lena.
No, it's Lena, not @.
No, there is no sign of @.
No, there's no trace of @.
No, there is no evidence of @.
No, @ is absent.
No, @ is missing.
No, @ does not appear.
No, @ doesn't appear in the video.
No, @ was not found.
No, @ cannot be seen.
No, @ can't be seen.
No, @ is nowhere to be seen.
No, nobody here is @.
No, none of them is @.
No, not at all.
No, definitely not.
No, certainly not.
No, unfortunately.
No, I'm sure that @ is not here.
No, without a doubt.
NO, IT IS NOT @
**No**, @ is not in the video.
**No.**
"No, @ is not here."
Answer: No
Answer: no, @ is not there.
The answer is no.
The answer is no, @ does not appear.
My answer is no.
I would say no.
I'd say no, that is not @.
I think no.
I think not.
Well, no.
Actually, no.
Unfortunately, no.
Unfortunately not.
Sorry, no.
Sorry, @ is not here.
I'm afraid not.
I am afraid not.
I'm afraid @ is not here.
A: No.
Definitely not.
Certainly not.
Certainly not @.
Absolutely not.
Of course not.
Not at all.
Not @.
Not here.
Not in this video.
Not visible.
Not present.
Not found.
@ is not here.
@ is not there.
@ is not present.
@ is not present in this recording.
@ is not in this video.
@ is not in the video.
@ is not visible.
@ is not visible anywhere.
@ is not on screen.
@ is not shown.
@ is not shown in this video.
@ is not seen.
@ is not featured.
@ is not featured in this recording.
@ is not the person in the video.
@ is not the one on screen.
@ is not among them.
@ is never seen.
@ is never shown.
@ never appears.
@ is nowhere.
@ is nowhere to be seen.
@ is nowhere to be found.
@ is nowhere in this video.
@ isn't here.
@ isn’t there
@ isn't in the video.
@ isn't visible.
@ does not appear.
@ does not appear in this video.
@ doesn't appear.
@ doesn't show up.
@ does not show up.
@ did not appear.
@ doesn't seem to be here.
@ does not seem to be in the video.
@ doesn't exist in this footage.
@ can not be seen.
@ cannot be seen.
@ can't be seen.
@ cannot be found.
@ could not be found.
@ couldn't be found.
@ could not be detected.
@ was not found.
@ was not detected.
@ wasn't found.
@ has not been found.
@ hasn't been captured.
@ is absent.
@ is absent from this video.
@ is missing.
@ is missing from the clip.
@ is elsewhere.
@ fails to appear.
@, who wears red, is not here.
@ is not the man with the beard.
@ is not the woman on the left.
There is no @.
There is no @ in this video.
There's no @ here.
There isn't any @.
There is no sign of @.
There is no trace of @.
There is no evidence of @.
There is no evidence that @ is here.
There is no indication of @.
There is no indication that @ is in the video.
There is no one called @.
There is nobody named @ here.
There is no person named @ in the video.
There are people, but none of them is @.
There are two people, neither of whom is @.
No @.
No @ here.
No sign of @.
No trace of @.
No one here is @.
Nobody in this clip is @.
Nobody here looks like @.
None of the people is @.
None of these people are @.
Neither of them is @.
That is not @.
That's not @.
That isn't @.
That is someone else.
That is somebody else.
That's a different person.
That is another woman.
This is not @.
This isn't @.
This is definitely not @.
This is another person.
This is a different person.
This is a different man.
This is the wrong person.
This is Lena, not @.
This is someone other than @.
This is not the person called @.
It is not @.
It's not @.
It isn't @.
It is Lena, not @.
It is someone else, not @.
It does not look like @.
It doesn't look like @.
It doesn't appear to be @.
It does not seem to be @.
This does not look like @.
This doesn't appear to be @.
I do not see @.
I don't see @.
I don't see Nz here
I don't see @ in this video.
I do not see her.
I don't see him in the clip.
I see no sign of @.
I see no @.
I see no trace of @.
I see nobody who looks like @.
I see someone else.
I see a man, but not @.
I see a woman, but it is not @.
I see people, but @ is not among them.
I cannot see @.
I can't see @.
I can not find @.
I can't find @.
I cannot find @ in the video.
I couldn't find @.
I could not find @.
I did not find @.
I didn't find @.
I have not found @.
I haven't found @.
I cannot detect @.
I can't detect @ in this clip.
I don't detect @.
I do not recognise @.
I don't recognize @.
I can't recognize @.
I cannot identify @.
I don't notice @.
I can't spot @.
I failed to find @.
I fail to see @.
I am unable to find @.
I'm unable to detect @ here.
I am not able to see @.
I was not able to find @.
I believe that @ is absent.
I believe @ is not here.
I believe this is not @.
I don't believe @ is here.
I do not believe that this is @.
I don't think @ is in the video.
I don't think that is @.
I do not think so.
I don't think so.
I think @ is not here.
I think this is not @.
I think this is someone else.
I would not say that @ is here.
I would say that is not @.
I know @, but I do not see @.
I am sure that this is not @.
I'm certain it's not @.
I can confirm that @ is not present.
I can confirm that this is not @.
The person is not @.
The person in the video is not @.
The person shown is not @.
The person shown isn't @.
The person is someone else.
The man is not @.
The woman isn't @.
The one on screen is not @.
The one in the red shirt is not @.
The video does not contain @.
The video doesn't include @.
The video does not show @.
The video doesn't show @.
The video shows someone else.
The video shows a different person.
The video shows another person, not @.
The video shows a man, but he is not @.
The video lacks @.
The clip does not show @.
The clip doesn't capture @.
The footage does not feature @.
The recording doesn't feature @.
This video does not show @.
This clip doesn't contain @.
In this video, @ is not visible.
In this video, there is no @.
In the clip you can not see @.
You can't see @.
You cannot see @ here.
We do not see @.
We can't see @ here.
Looking at the frames, I can not see @.
Based on the video, @ is not present.
Judging by the hair, this is not @.
Based on the reference, this is not @.
He is not in the video.
She is not in the video.
She isn't here.
They are not in this clip.
He's not here.
She's not in the video.
"""
UNKNOWN = """
A man is walking.
A woman in a red coat waves at the camera.
the the the
It is sunny.
I cannot tell.
I can't tell.
I can not say.
I do not know.
I don't know.
I do not know who this is.
I have no idea.
I don't know @.
I do not know who @ is.
I don't know what @ looks like.
I am not sure.
I'm not sure.
I'm not sure whether @ is here.
I am not certain that this is @.
I'm unsure.
I am uncertain whether this is @.
It is unclear.
It is unclear whether @ is here.
It's not clear whether @ appears.
It is not clear if this is @.
It is impossible to say.
It is impossible to tell whether this is @.
It is hard to say.
It's difficult to tell whether @ is in the video.
It is hard to tell.
It could be @.
It might be @.
It may be @.
It may or may not be @.
Maybe.
Maybe @ is here.
Perhaps.
Perhaps it is @.
Possibly.
Possibly @.
Probably.
@ might be here.
@ may be in the video.
@ could be the person on the left.
This might be @.
This could be @.
I cannot determine whether @ is here.
I can't determine if this is @.
I cannot confirm that this is @.
I can't verify whether @ appears.
I am not able to tell.
I am unable to say.
I'm unable to determine whether @ is present.
I cannot identify people.
I can't identify real people from their appearance.
I'm sorry, but I can't help with identifying people.
Nzambi is here.
Yes and no.
Yes or no?
Yes, @ is not here.
Yes, I do not see @.
No, @ is in this video.
No, that is @.
No, I can see @.
The name of the person is not given.
The video shows a person.
There is a person in the video.
Lena is here.
"""


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


@pytest.mark.parametrize("name", ["<Nz>", "<Ada B.>"])
@pytest.mark.parametrize(
    ("meaning", "answers"), [("present", PRESENT), ("absent", ABSENT), ("unknown", UNKNOWN)], ids=lambda v: v[:8]
)
def test_presence_is_read_from_hundreds_of_phrasings(meaning, answers, name):
    answers = [line.replace("@", name) for line in lines(answers) if "Nz" not in line or name == "<Nz>"]
    wrong = [(answer, parse_presence(answer, name)) for answer in answers if parse_presence(answer, name) != meaning]
    assert wrong == []


def test_there_are_hundreds_of_different_phrasings():
    counts = [len(set(lines(text))) for text in (PRESENT, ABSENT, UNKNOWN)]
    assert counts[0] > 150 and counts[1] > 150 and counts[2] > 50
    everything = [line for text in (PRESENT, ABSENT, UNKNOWN) for line in lines(text)]
    assert len(set(everything)) == sum(counts)


def test_nothing_says_nothing():
    assert {parse_presence(text, "<Nz>") for text in ("", "   ", "\n")} == {"unknown"}


@pytest.mark.parametrize("name", ["<Nz>", "<Ada B.>", "<sks>"])
def test_presence_of_every_answer_in_the_question_bank_is_read(name):
    bank = json.loads(BANK.read_text(encoding="utf-8"))
    wrong = [
        (answer, name)
        for category in bank.values()
        for kind, meaning in (("yes", "present"), ("no", "absent"), ("refusals", "absent"))
        for answer in category.get(kind, ())
        if parse_presence(answer.replace("{name}", name), name) != meaning
    ]
    assert wrong == []


@pytest.mark.skipif(not AUTHORS_JSON.exists(), reason="the authors' file is not here")
def test_presence_agrees_with_every_answer_of_the_authors():
    videos = json.loads(AUTHORS_JSON.read_text(encoding="utf-8"))["data"]
    pairs = [(q["answer"], v["is_positive"]) for v in videos for q in v["qa_pairs"] if q["is_special"]]
    assert len(pairs) == 9840
    wrong = [a for a, present in pairs if parse_presence(a, "<sks>") != ("present" if present else "absent")]
    assert wrong == []


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_presence_of_any_text_is_one_of_three(text):
    assert parse_presence(text, "<Nz>") in ("present", "absent", "unknown")


@given(st.sampled_from(lines(PRESENT + ABSENT)), st.sampled_from(["<Mo>", "<Zoë>", "<J. R.>", "<sks>"]))
@settings(max_examples=200, deadline=None)
def test_what_is_said_does_not_depend_on_the_name_case_or_spaces(line, name):
    if "Nz" in line:
        return
    said = parse_presence(line.replace("@", "<Nz>"), "<Nz>")
    assert parse_presence(line.replace("@", name), name) == said
    assert parse_presence("  " + line.replace("@", name).replace(" ", "  "), name) == said
