//! The one way from a picture to something that may be handed in: a look at what it shows.

use std::panic::{AssertUnwindSafe, catch_unwind};

use horde_client::metadata::{Metadata, MetadataType, MetadataValue, State};
use imaging::{Picture, WebpOptions, encode_webp};
use serde_bytes::ByteBuf;
use vision::safety::{Notice, Rating, replacement};
use worker_runtime::backend::Fault;

use crate::work::{Censors, Made, Output};

/// What a checker is told besides the picture.
#[derive(Clone, Copy)]
pub struct About<'a> {
    /// The names, titles and trained words of LoRAs, the names of inversions and the whole prompt, the negative part after
    /// `###`.
    pub prompt: &'a str,
    /// The reference flags the model.
    pub is_nsfw_model: bool,
    /// Style of the model as the reference has it: `anime`, `realistic`, …
    pub style: &'a str,
}

/// Looks at finished pictures.
pub trait Checker: Send + Sync {
    /// What the picture shows.
    ///
    /// # Errors
    /// It could not be told; the picture is then never handed in.
    fn rate(&self, picture: &Picture, about: About<'_>) -> Result<Rating, String>;
}

/// What stands between a picture and its upload.
pub enum Gate {
    /// Every picture is looked at.
    Checker(Box<dyn Checker>),
    /// None is: a Horde on this machine, and the owner said so.
    UncheckedOnLoopback,
}

/// What is done with what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Pictures not safe for work are replaced: the requester or the owner wants none.
    pub censors: Option<Censors>,
    /// The prompt has a word of the owner's list.
    pub has_censored_word: bool,
}

/// A picture that was looked at, or the one in its place.
pub struct Checked {
    picture: Picture,
    state: State,
    note: Option<Metadata>,
}

impl Gate {
    /// Looks at a picture, replaces it where that is due.
    ///
    /// # Errors
    /// The checker failed, be it by a panic. There is no way to hand the picture in then; those beside it live.
    pub fn pass(&self, picture: Picture, about: About<'_>, policy: Policy) -> Result<Checked, Fault> {
        let rating = match self {
            Self::Checker(checker) => catch_unwind(AssertUnwindSafe(|| checker.rate(&picture, about)))
                // Its message may hold anything, and is on standard error already.
                .unwrap_or_else(|_| Err("it panicked".into()))
                .map_err(|reason| Fault::of_worker(format!("the content check failed: {reason}")))?,
            Self::UncheckedOnLoopback => Rating::Ok,
        };
        let unwanted = match policy.censors.filter(|_| rating == Rating::Nsfw) {
            Some(Censors::Requester) => Some(Notice::Unwanted),
            Some(Censors::Owner) => Some(Notice::NotHere),
            None => policy.has_censored_word.then_some(Notice::Word),
        };
        let note = |kind, value| Some(Metadata::new(kind, value, None));
        let size = (picture.width(), picture.height());
        Ok(match (rating, unwanted) {
            (Rating::Csam, _) => Checked {
                picture: replacement(Notice::Removed, size.0, size.1),
                state: State::Csam,
                note: note(MetadataType::Censorship, MetadataValue::Csam),
            },
            (Rating::Nsfw | Rating::Ok, Some(notice)) => Checked {
                picture: replacement(notice, size.0, size.1),
                state: State::Censored,
                note: note(MetadataType::Censorship, MetadataValue::Nsfw),
            },
            (Rating::Nsfw, None) => Checked {
                picture,
                state: State::Ok,
                note: note(MetadataType::Information, MetadataValue::Nsfw),
            },
            (Rating::Ok, None) => Checked {
                picture,
                state: State::Ok,
                note: None,
            },
        })
    }
}

impl Checked {
    /// Packs the picture as the Horde takes it: WebP, with alpha where there is some.
    pub fn into_output(self, mut notes: Vec<Metadata>, made: Made) -> Result<Output, Fault> {
        let webp = encode_webp(&self.picture, WebpOptions::default())
            .map_err(|error| Fault::of_worker(format!("the picture could not be encoded: {error}")))?;
        // First of all: the Horde looks at no more than fifty.
        notes.splice(0..0, self.note);
        Ok(Output {
            webp: ByteBuf::from(webp),
            state: self.state,
            notes,
            made,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Says(Result<Rating, String>);

    impl Checker for Says {
        fn rate(&self, _: &Picture, _: About<'_>) -> Result<Rating, String> {
            self.0.clone()
        }
    }

    const ABOUT: About<'static> = About {
        prompt: "a cat",
        is_nsfw_model: false,
        style: "generalist",
    };
    const SEEN: [u8; 3] = [9, 200, 9];

    fn passed(
        says: Result<Rating, String>,
        censors: Option<Censors>,
        has_censored_word: bool,
    ) -> Result<Checked, Fault> {
        let policy = Policy {
            censors,
            has_censored_word,
        };
        Gate::Checker(Box::new(Says(says))).pass(Picture::filled(64, 64, SEEN), ABOUT, policy)
    }

    fn check(
        rating: Rating,
        censors: Option<Censors>,
        word: bool,
        expected: (State, Option<(MetadataType, MetadataValue)>, Option<Notice>),
    ) {
        let checked = passed(Ok(rating), censors, word).unwrap();
        let is = |notice: &Notice| checked.picture.data() == replacement(*notice, 64, 64).data();
        let notice = Notice::ALL.into_iter().find(is);
        let is_original = checked.picture.data() == Picture::filled(64, 64, SEEN).data();
        assert_eq!(is_original, notice.is_none(), "{rating:?} {censors:?} {word}");
        let note = checked.note.map(|note| (note.kind, note.value));
        assert_eq!((checked.state, note, notice), expected, "{rating:?} {censors:?} {word}");
    }

    #[test]
    fn the_policy_is_that_of_the_horde() {
        use Censors::{Owner, Requester};
        use MetadataType::{Censorship, Information};
        let nothing = (State::Ok, None, None);
        let replaced = |notice| (State::Censored, Some((Censorship, MetadataValue::Nsfw)), Some(notice));
        let noted = (State::Ok, Some((Information, MetadataValue::Nsfw)), None);
        for censors in [None, Some(Requester), Some(Owner)] {
            check(Rating::Ok, censors, false, nothing.clone());
            check(Rating::Ok, censors, true, replaced(Notice::Word));
            for word in [false, true] {
                let removed = (
                    State::Csam,
                    Some((Censorship, MetadataValue::Csam)),
                    Some(Notice::Removed),
                );
                check(Rating::Csam, censors, word, removed);
            }
        }
        check(Rating::Nsfw, None, false, noted);
        check(Rating::Nsfw, None, true, replaced(Notice::Word));
        for word in [false, true] {
            check(Rating::Nsfw, Some(Requester), word, replaced(Notice::Unwanted));
            check(Rating::Nsfw, Some(Owner), word, replaced(Notice::NotHere));
        }
    }

    #[test]
    fn a_checker_that_fails_lets_nothing_through() {
        let fault = passed(Err("no memory".into()), None, false).map(drop).unwrap_err();
        assert!(fault.ours && fault.reason.contains("no memory"));
    }
}
