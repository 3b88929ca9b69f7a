//! A page with every picture of a demo beside what was asked for, and the pictures as files.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use imaging::{Filter, Picture, encode_png};

/// Collects pictures for one page.
pub struct Sheet {
    folder: PathBuf,
    title: String,
    cards: Vec<Card>,
}

struct Card {
    title: String,
    text: String,
    verdict: Result<(), String>,
    files: Vec<String>,
    pictures: Vec<Picture>,
}

/// Side of a picture on the contact sheet in pixels.
const TILE: u32 = 192;
const COLUMNS: u32 = 5;
/// Between tiles.
const GAP: u32 = 8;

impl Sheet {
    /// An empty page in a folder beside the programs, such as `target/demo/dreamer`, which is emptied.
    pub fn begin(name: &str, title: &str) -> anyhow::Result<Self> {
        let here = std::env::current_exe().context("this program has no path")?;
        let target = here
            .ancestors()
            .find(|folder| folder.join(".rustc_info.json").is_file() || folder.ends_with("target"))
            .or(here.parent())
            .context("this program stands nowhere")?;
        let folder = target.join("demo").join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("`{}` cannot be emptied", folder.display()))?;
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("`{}` cannot be made", folder.display()))?;
        Ok(Self {
            folder,
            title: title.to_owned(),
            cards: Vec::new(),
        })
    }

    /// One request with its pictures; the verdict says what the pixels show.
    pub fn add(
        &mut self,
        title: &str,
        text: &str,
        pictures: Vec<Picture>,
        verdict: Result<(), String>,
    ) -> anyhow::Result<()> {
        let mut files = Vec::new();
        for (index, picture) in pictures.iter().enumerate() {
            let name = format!("{:02}-{}-{index}.png", self.cards.len() + 1, slug(title));
            std::fs::write(self.folder.join(&name), encode_png(picture)?)?;
            files.push(name);
        }
        self.cards.push(Card {
            title: title.to_owned(),
            text: text.to_owned(),
            verdict,
            files,
            pictures,
        });
        Ok(())
    }

    /// A file beside the page.
    pub fn keep(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        std::fs::write(self.folder.join(name), bytes).with_context(|| format!("`{name}` cannot be written"))
    }

    /// Writes `index.html` and `contact-sheet.png`; returns the page's path.
    pub fn finish(self) -> anyhow::Result<PathBuf> {
        let page = self.folder.join("index.html");
        std::fs::write(&page, self.html())?;
        let pictures: Vec<&Picture> = self.cards.iter().flat_map(|card| &card.pictures).collect();
        if !pictures.is_empty() {
            write_contact_sheet(&pictures, &self.folder.join("contact-sheet.png"))?;
        }
        Ok(page)
    }

    fn html(&self) -> String {
        let title = escaped(&self.title);
        let mut html = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>\n\
             body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem; background: #f4f4f2; color: #222 }}\n\
             main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem }}\n\
             article {{ background: #fff; padding: 1rem; border-radius: 8px; box-shadow: 0 1px 3px #0002 }}\n\
             h2 {{ font-size: 1rem; margin: 0 0 .5rem }} p {{ margin: .3rem 0; overflow-wrap: anywhere }}\n\
             img {{ max-width: 100%; min-width: 7rem; margin: 0 .4rem .4rem 0; image-rendering: auto }}\n\
             .right {{ color: #17692e }} .wrong {{ color: #a51d1d; font-weight: 600 }}\n\
             </style></head><body><h1>{title}</h1><main>\n"
        );
        for card in &self.cards {
            let _ = write!(html, "<article><h2>{}</h2>", escaped(&card.title));
            for file in &card.files {
                let _ = write!(html, "<img src=\"{file}\" alt=\"\">");
            }
            let (class, words) = match &card.verdict {
                Ok(()) => ("right", "as asked"),
                Err(why) => ("wrong", why.as_str()),
            };
            let _ = writeln!(
                html,
                "<p>{}</p><p class=\"{class}\">{}</p></article>",
                escaped(&card.text),
                escaped(words)
            );
        }
        html.push_str("</main></body></html>\n");
        html
    }
}

fn write_contact_sheet(pictures: &[&Picture], path: &Path) -> anyhow::Result<()> {
    let count = u32::try_from(pictures.len())?;
    let columns = COLUMNS.min(count);
    let (width, height) = (
        columns * (TILE + GAP) + GAP,
        count.div_ceil(columns) * (TILE + GAP) + GAP,
    );
    let mut sheet = Picture::filled(width, height, [255, 255, 255]);
    for (picture, index) in pictures.iter().zip(0..) {
        let (left, top) = (
            GAP + index % columns * (TILE + GAP),
            GAP + index / columns * (TILE + GAP),
        );
        let scale = f64::from(TILE) / f64::from(picture.width().max(picture.height()));
        let side = |pixels: u32| ((f64::from(pixels) * scale).round() as u32).clamp(1, TILE);
        let small =
            picture
                .over([255, 255, 255])
                .resized(side(picture.width()), side(picture.height()), Filter::Bilinear);
        let (row, from) = (width as usize * 3, small.width() as usize * 3);
        for (y, line) in small.data().chunks_exact(from).enumerate() {
            let at = (top as usize + y) * row + left as usize * 3;
            sheet.data_mut()[at..at + from].copy_from_slice(line);
        }
    }
    std::fs::write(path, encode_png(&sheet)?)?;
    Ok(())
}

fn slug(title: &str) -> String {
    let mut slug = String::new();
    for c in title.chars().take(40) {
        if c.is_ascii_alphanumeric() {
            slug.push(c.to_ascii_lowercase());
        } else if !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.trim_matches('-').to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_cannot_break_the_page() {
        assert_eq!(slug("A <b>: 64×64!"), "a-b-64-64");
        assert_eq!(escaped("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
