//! The pictures that stand in for what is not handed out: drawn here, given to the public domain.

use imaging::Picture;

use super::font::{ADVANCE, LINE, letter};
use crate::upscale::{MAX_RESULT_PIXELS, MAX_RESULT_SIDE};

const GROUND: [u8; 3] = [40, 42, 46];
const INK: [u8; 3] = [236, 236, 236];
const AMBER: [u8; 3] = [225, 150, 40];
const RED: [u8; 3] = [200, 40, 40];

/// Why a picture is not handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Notice {
    /// Nobody may have it.
    Removed,
    /// It is not safe for work, and who asked for it wants no such picture.
    Unwanted,
    /// It is not safe for work, and this worker hands no such picture out.
    NotHere,
    /// A word of the owner's list was in the prompt.
    Word,
}

impl Notice {
    /// All notices.
    pub const ALL: [Self; 4] = [Self::Removed, Self::Unwanted, Self::NotHere, Self::Word];

    /// The frame's colour and what is written.
    fn drawn(self) -> ([u8; 3], [&'static str; 4]) {
        match self {
            Self::Removed => (RED, ["REMOVED", "BY", "CONTENT", "CHECK"]),
            Self::Unwanted => (AMBER, ["ADULT", "CONTENT", "NOT", "WANTED"]),
            Self::NotHere => (AMBER, ["ADULT", "CONTENT", "NOT SHOWN", "HERE"]),
            Self::Word => (AMBER, ["WORD", "NOT", "ALLOWED", "HERE"]),
        }
    }
}

/// A notice in a coloured frame, of the size of what it replaces: red for what nobody may have, amber for
/// all else. It is readable from 64 pixels a side; sizes beyond what any result may have are cut.
pub fn replacement(notice: Notice, width: u32, height: u32) -> Picture {
    let width = width.clamp(1, MAX_RESULT_SIDE as u32);
    let height = height.clamp(1, MAX_RESULT_SIDE.min(MAX_RESULT_PIXELS / u64::from(width)) as u32);
    let (frame, lines) = notice.drawn();
    let mut picture = Picture::filled(width, height, GROUND);
    let (width, height) = (width as usize, height as usize);
    let mut dot = |x: usize, y: usize, colour: [u8; 3]| {
        if x < width && y < height {
            let at = (y * width + x) * 3;
            if let Some(pixel) = picture.data_mut().get_mut(at..at + 3) {
                pixel.copy_from_slice(&colour);
            }
        }
    };

    let stroke = (width.min(height) / 32).max(1);
    for n in 0..stroke {
        for x in 0..width {
            dot(x, n, frame);
            dot(x, height - 1 - n.min(height - 1), frame);
        }
        for y in 0..height {
            dot(n, y, frame);
            dot(width - 1 - n.min(width - 1), y, frame);
        }
    }

    let longest = lines.iter().map(|line| line.len()).max().unwrap_or(1) * ADVANCE;
    let tall = lines.len() * LINE;
    let scale = (width * 4 / 5 / longest).min(height * 4 / 5 / tall).max(1);
    let top = height.saturating_sub(tall * scale) / 2;
    for (row, line) in lines.iter().enumerate() {
        let left = width.saturating_sub((line.len() * ADVANCE - 1) * scale) / 2;
        for (column, rows) in line.chars().enumerate().filter_map(|(n, c)| Some((n, letter(c)?))) {
            for (dot_y, bits) in rows.iter().enumerate() {
                for dot_x in (0..5).filter(|x| bits & (0b10000 >> x) != 0) {
                    let x = left + (column * ADVANCE + dot_x) * scale;
                    let y = top + (row * LINE + dot_y + 1) * scale;
                    for (dx, dy) in (0..scale).flat_map(|dy| (0..scale).map(move |dx| (dx, dy))) {
                        dot(x + dx, y + dy, INK);
                    }
                }
            }
        }
    }
    picture
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(picture: &Picture, colour: [u8; 3]) -> usize {
        picture.data().chunks_exact(3).filter(|pixel| *pixel == colour).count()
    }

    #[test]
    fn it_has_the_size_of_what_it_replaces_and_carries_a_notice() {
        for size in [(64, 64), (3072, 64), (64, 3072), (512, 768), (3072, 3072)] {
            for notice in Notice::ALL {
                let picture = replacement(notice, size.0, size.1);
                let frame = if notice == Notice::Removed { RED } else { AMBER };
                assert_eq!((picture.width(), picture.height()), size);
                assert_eq!(picture.rgb_at(0, size.1 - 1), Some(frame));
                // A dozen letters or more of a dozen dots or more each.
                assert!(count(&picture, INK) >= 12 * 12, "{size:?}");
                assert!(count(&picture, GROUND) * 2 > (size.0 * size.1) as usize, "{size:?}");
            }
        }
    }

    #[test]
    fn every_letter_of_the_notices_exists_and_lies_inside() {
        let dots = |text: &str| -> usize {
            let rows = text.chars().filter(|c| *c != ' ').map(|c| letter(c).unwrap());
            rows.flatten().map(|bits| bits.count_ones() as usize).sum()
        };
        for notice in Notice::ALL {
            let written = dots(&notice.drawn().1.concat());
            assert_eq!(count(&replacement(notice, 64, 64), INK), written, "{notice:?}");
        }
    }

    #[test]
    fn impossible_sizes_give_a_picture_too() {
        for (width, height) in [(0, 0), (1, 1), (3, 2), (1, 5000)] {
            let picture = replacement(Notice::Removed, width, height);
            assert_eq!((picture.width(), picture.height()), (width.max(1), height.max(1)));
        }
    }
}
