"""The mark that says a picture was made by a trained model: IPTC's DigitalSourceType in an XMP packet.

Search engines and photo programs read it (IPTC Photo Metadata 2021.1 and later, property Iptc4xmpExt:DigitalSourceType).
It names no prompt and no user, so it stays when the settings are left out.
"""

from __future__ import annotations

import html
import re

TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:unnoise="urn:unnoise:">
   <Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>
   <xmp:CreatorTool>unnoise</xmp:CreatorTool>{settings}
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""
SETTINGS = re.compile(r"<unnoise:settings>(.*?)</unnoise:settings>", re.DOTALL)


def packet(settings: str = "") -> bytes:
    """The XMP packet; `settings` is JSON for the formats that have no text chunk of their own (JPEG, WebP)."""
    element = f"\n   <unnoise:settings>{html.escape(settings)}</unnoise:settings>" if settings else ""
    return PACKET.format(source=TRAINED, settings=element).encode()


def settings(xmp: bytes) -> str:
    """The JSON that `packet` put there, or an empty string."""
    found = SETTINGS.search(xmp.decode("utf-8", "replace"))
    return html.unescape(found[1]) if found else ""


def is_marked(xmp: bytes) -> bool:
    """Whether the packet says that a trained model made the picture."""
    return TRAINED.encode() in xmp
