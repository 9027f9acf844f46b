import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.module.blackbird.BlackbirdModule;
import java.io.ByteArrayOutputStream;
import java.io.DataInput;
import java.io.DataOutput;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.Map;
import java.util.TreeMap;

/**
 * One customer's context, and what an interaction does to it. Both Java peers work with it.
 *
 * <p>Entries of the timeline are kept as the bytes they came in, so that keeping, storing and showing one is a copy.
 */
public final class Customer {
  static final long GAP_MS = 30 * 60_000;
  static final int KEEP = 50;

  @JsonIgnoreProperties(ignoreUnknown = true)
  public static final class Item {
    public String kind, id, status, title;
  }

  @JsonIgnoreProperties(ignoreUnknown = true)
  public static final class Entry {
    public String id, type, channel, touchpoint;
    public long event_time_ms;
    public Item item;
  }

  @JsonIgnoreProperties(ignoreUnknown = true)
  public static final class Interaction {
    public String customer_key;
    public Entry entry;
  }

  private static final ObjectReader READER =
      JsonMapper.builder().addModule(new BlackbirdModule()).build().readerFor(Interaction.class);
  private static final byte[] ENTRY = "\"entry\":".getBytes(StandardCharsets.US_ASCII);

  private long revision, sessionStart, sessionLast, sessionEvents;
  private String sessionId = "";
  private final TreeMap<String, Integer> channels = new TreeMap<>();
  private final TreeMap<String, String> open = new TreeMap<>();
  private final ArrayDeque<byte[]> timeline = new ArrayDeque<>(KEEP + 1);

  /** Apply a record of the interactions in place; returns the step to emit. */
  public byte[] apply(byte[] record) throws IOException {
    Interaction given = READER.readValue(record);
    Entry entry = given.entry;
    long at = entry.event_time_ms;
    boolean opened = sessionId.isEmpty() || at - sessionLast > GAP_MS;
    if (opened) {
      sessionId = given.customer_key + "/" + at;
      sessionStart = sessionLast = at;
      sessionEvents = 0;
    }
    sessionLast = Math.max(sessionLast, at);
    sessionEvents++;
    channels.merge(entry.channel, 1, Integer::sum);
    revision++;
    if (entry.item != null) {
      String name = entry.item.kind + ":" + entry.item.id;
      if (entry.item.status.equals("open") || entry.item.status.equals("waiting")) {
        open.put(name, "{\"status\":\"" + entry.item.status + "\",\"updated_at_ms\":" + at + "}");
      } else {
        open.remove(name);
      }
    }
    byte[] line = withSession(record);
    timeline.addLast(line);
    if (timeline.size() > KEEP) timeline.removeFirst();
    Bytes step = new Bytes(line.length + 200);
    step.text("{\"customer_key\":\"").text(given.customer_key).text("\",\"revision\":").text(Long.toString(revision));
    step.text(",\"session_opened\":").text(opened ? "true" : "false").text(",\"entry\":").raw(line).text("}");
    return step.toByteArray();
  }

  /** The entry as it stands in the record, with the session's id. */
  private byte[] withSession(byte[] record) {
    int start = after(record, ENTRY), depth = 0, end = start;
    boolean quoted = false;
    for (; end < record.length; end++) {
      byte b = record[end];
      if (quoted) {
        if (b == '\\') end++;
        else if (b == '"') quoted = false;
      } else if (b == '"') quoted = true;
      else if (b == '{') depth++;
      else if (b == '}' && --depth == 0) break;
    }
    Bytes line = new Bytes(end - start + 80);
    line.write(record, start, end - start);
    return line.text(",\"session_id\":\"").text(sessionId).text("\"}").toByteArray();
  }

  private static int after(byte[] text, byte[] wanted) {
    for (int at = 0; at <= text.length - wanted.length; at++) {
      int same = 0;
      while (same < wanted.length && text[at + same] == wanted[same]) same++;
      if (same == wanted.length) return at + same;
    }
    throw new IllegalArgumentException("no entry in the record");
  }

  /** The document for Redis. */
  public byte[] document(String key) {
    Bytes out = new Bytes(1024 + timeline.size() * 400);
    out.text("{\"customer_key\":\"").text(key).text("\",\"revision\":").text(Long.toString(revision));
    out.text(",\"session\":{\"id\":\"").text(sessionId).text("\",\"started_at_ms\":").text(Long.toString(sessionStart));
    out.text(",\"last_event_at_ms\":").text(Long.toString(sessionLast));
    out.text(",\"events\":").text(Long.toString(sessionEvents)).text("},\"channels\":{");
    String comma = "";
    for (Map.Entry<String, Integer> each : channels.entrySet()) {
      out.text(comma).text("\"").text(each.getKey()).text("\":").text(each.getValue().toString());
      comma = ",";
    }
    out.text("},\"open\":{");
    comma = "";
    for (Map.Entry<String, String> each : open.entrySet()) {
      out.text(comma).text("\"").text(each.getKey()).text("\":").text(each.getValue());
      comma = ",";
    }
    out.text("},\"timeline\":[");
    comma = "";
    for (byte[] line : timeline) {
      out.text(comma).raw(line);
      comma = ",";
    }
    return out.text("]}").toByteArray();
  }

  /** Write the state, for a changelog or a checkpoint. */
  public void write(DataOutput out) throws IOException {
    out.writeLong(revision);
    out.writeLong(sessionStart);
    out.writeLong(sessionLast);
    out.writeLong(sessionEvents);
    out.writeUTF(sessionId);
    out.writeInt(channels.size());
    for (Map.Entry<String, Integer> each : channels.entrySet()) {
      out.writeUTF(each.getKey());
      out.writeInt(each.getValue());
    }
    out.writeInt(open.size());
    for (Map.Entry<String, String> each : open.entrySet()) {
      out.writeUTF(each.getKey());
      out.writeUTF(each.getValue());
    }
    out.writeInt(timeline.size());
    for (byte[] line : timeline) {
      out.writeInt(line.length);
      out.write(line);
    }
  }

  /** Read what {@link #write} wrote. */
  public static Customer read(DataInput in) throws IOException {
    Customer found = new Customer();
    found.revision = in.readLong();
    found.sessionStart = in.readLong();
    found.sessionLast = in.readLong();
    found.sessionEvents = in.readLong();
    found.sessionId = in.readUTF();
    for (int left = in.readInt(); left > 0; left--) found.channels.put(in.readUTF(), in.readInt());
    for (int left = in.readInt(); left > 0; left--) found.open.put(in.readUTF(), in.readUTF());
    for (int left = in.readInt(); left > 0; left--) {
      byte[] line = new byte[in.readInt()];
      in.readFully(line);
      found.timeline.addLast(line);
    }
    return found;
  }

  /** A copy that shares the entries, which nobody changes. */
  public Customer copy() {
    Customer other = new Customer();
    other.revision = revision;
    other.sessionStart = sessionStart;
    other.sessionLast = sessionLast;
    other.sessionEvents = sessionEvents;
    other.sessionId = sessionId;
    other.channels.putAll(channels);
    other.open.putAll(open);
    other.timeline.addAll(timeline);
    return other;
  }

  private static final class Bytes extends ByteArrayOutputStream {
    Bytes(int size) {
      super(size);
    }

    @SuppressWarnings("deprecation") // the fast way for what is ASCII by its make: keys, numbers, names
    Bytes text(String text) {
      int length = text.length();
      byte[] raw = new byte[length];
      text.getBytes(0, length, raw, 0);
      write(raw, 0, length);
      return this;
    }

    Bytes raw(byte[] raw) {
      write(raw, 0, raw.length);
      return this;
    }
  }
}
