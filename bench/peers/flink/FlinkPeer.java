import java.io.IOException;
import java.util.Properties;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.api.common.typeinfo.PrimitiveArrayTypeInfo;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.common.typeutils.SimpleTypeSerializerSnapshot;
import org.apache.flink.api.common.typeutils.TypeSerializerSnapshot;
import org.apache.flink.api.common.typeutils.base.TypeSerializerSingleton;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.api.java.tuple.Tuple3;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.MemorySize;
import org.apache.flink.configuration.StateBackendOptions;
import org.apache.flink.configuration.TaskManagerOptions;
import org.apache.flink.connector.base.DeliveryGuarantee;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.connector.kafka.sink.KafkaSink;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.core.execution.CheckpointingMode;
import org.apache.flink.core.memory.DataInputView;
import org.apache.flink.core.memory.DataOutputView;
import org.apache.flink.runtime.state.FunctionInitializationContext;
import org.apache.flink.runtime.state.FunctionSnapshotContext;
import org.apache.flink.streaming.api.checkpoint.CheckpointedFunction;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.util.Collector;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.producer.ProducerRecord;

/**
 * The work in Flink: state on the heap, a checkpoint every second, exactly once to Kafka.
 *
 * <p>Redis is outside of that: it is written before the checkpoint, so after a crash it may show what is undone. Steps
 * become readable with the checkpoint. Arguments: bootstrap, redis host, redis port, input topic, output topic, prefix,
 * count, warm share, linger ms, directory.
 */
public final class FlinkPeer {
  /** Key, value and timestamp of a record. */
  private static final TypeInformation<Tuple3<String, byte[], Long>> RECORD =
      Types.TUPLE(Types.STRING, PrimitiveArrayTypeInfo.BYTE_PRIMITIVE_ARRAY_TYPE_INFO, Types.LONG);

  private static final TypeInformation<Tuple2<String, byte[]>> STEP =
      Types.TUPLE(Types.STRING, PrimitiveArrayTypeInfo.BYTE_PRIMITIVE_ARRAY_TYPE_INFO);

  /** Shared by all subtasks, which run in this process. */
  private static Watch watch;

  public static void main(String[] args) throws Exception {
    String output = args[4];
    long linger = Long.parseLong(args[8]);
    watch = new Watch(Long.parseLong(args[6]), Double.parseDouble(args[7]));

    Configuration settings = new Configuration();
    settings.set(StateBackendOptions.STATE_BACKEND, "hashmap");
    settings.set(CheckpointingOptions.CHECKPOINT_STORAGE, "filesystem");
    settings.set(CheckpointingOptions.CHECKPOINTS_DIRECTORY, "file://" + args[9]);
    settings.set(TaskManagerOptions.NETWORK_MEMORY_MIN, MemorySize.ofMebiBytes(64));
    settings.set(TaskManagerOptions.NETWORK_MEMORY_MAX, MemorySize.ofMebiBytes(64));
    StreamExecutionEnvironment flink = StreamExecutionEnvironment.createLocalEnvironment(2, settings);
    flink.enableCheckpointing(1000, CheckpointingMode.EXACTLY_ONCE);
    flink.getConfig().enableObjectReuse();
    flink.getConfig().setAutoWatermarkInterval(0);
    // What a record may wait for others on its way to the keyed step: as long as Redis may, at most.
    flink.setBufferTimeout(Math.min(linger, 100));

    KafkaSource<Tuple3<String, byte[], Long>> source =
        KafkaSource.<Tuple3<String, byte[], Long>>builder()
            .setBootstrapServers(args[0])
            .setTopics(args[3])
            .setGroupId(args[5])
            .setStartingOffsets(OffsetsInitializer.earliest())
            .setDeserializer(new AsRecord())
            .setProperty("max.poll.records", "5000")
            .build();
    Properties producer = new Properties();
    producer.put("transaction.timeout.ms", "60000");
    producer.put("linger.ms", "5");
    producer.put("batch.size", Integer.toString(256 * 1024));
    KafkaSink<Tuple2<String, byte[]>> sink =
        KafkaSink.<Tuple2<String, byte[]>>builder()
            .setBootstrapServers(args[0])
            .setRecordSerializer(
                (KafkaRecordSerializationSchema<Tuple2<String, byte[]>>)
                    (step, context, timestamp) ->
                        new ProducerRecord<>(output, step.f0.getBytes(java.nio.charset.StandardCharsets.UTF_8), step.f1))
            .setDeliveryGuarantee(DeliveryGuarantee.EXACTLY_ONCE)
            .setTransactionalIdPrefix(args[5])
            .setKafkaProducerConfig(producer)
            .build();
    flink
        .fromSource(source, WatermarkStrategy.noWatermarks(), "interactions", RECORD)
        .keyBy(record -> record.f0, Types.STRING)
        .process(new Context(args[1], Integer.parseInt(args[2]), args[5], linger), STEP)
        .sinkTo(sink);
    flink.execute(args[5]);
    Runtime.getRuntime().halt(1); // the input has no end
  }

  private static final class AsRecord implements KafkaRecordDeserializationSchema<Tuple3<String, byte[], Long>> {
    @Override
    public void deserialize(ConsumerRecord<byte[], byte[]> record, Collector<Tuple3<String, byte[], Long>> out) {
      String key = new String(record.key(), java.nio.charset.StandardCharsets.UTF_8);
      out.collect(Tuple3.of(key, record.value(), record.timestamp()));
    }

    @Override
    public TypeInformation<Tuple3<String, byte[], Long>> getProducedType() {
      return RECORD;
    }
  }

  private static final class Context
      extends KeyedProcessFunction<String, Tuple3<String, byte[], Long>, Tuple2<String, byte[]>>
      implements CheckpointedFunction {
    private final String host, prefix;
    private final int port;
    private final long linger;
    private transient ValueState<Customer> state;
    private transient RedisWriter redis;

    Context(String host, int port, String prefix, long linger) {
      this.host = host;
      this.port = port;
      this.prefix = prefix;
      this.linger = linger;
    }

    @Override
    public void open(OpenContext context) {
      state = getRuntimeContext().getState(new ValueStateDescriptor<>("customer", new CustomerSerializer()));
      redis = new RedisWriter(host, port, prefix, linger, watch);
    }

    @Override
    public void processElement(
        Tuple3<String, byte[], Long> record,
        KeyedProcessFunction<String, Tuple3<String, byte[], Long>, Tuple2<String, byte[]>>.Context context,
        Collector<Tuple2<String, byte[]>> out)
        throws IOException {
      Customer customer = state.value();
      if (customer == null) customer = new Customer();
      out.collect(Tuple2.of(record.f0, customer.apply(record.f1)));
      state.update(customer);
      if (redis.isEmpty()) {
        long now = context.timerService().currentProcessingTime();
        context.timerService().registerProcessingTimeTimer(now + linger);
      }
      redis.changed(record.f0, customer, record.f2);
    }

    @Override
    public void onTimer(long at, OnTimerContext context, Collector<Tuple2<String, byte[]>> out) {
      redis.flush();
    }

    @Override
    public void snapshotState(FunctionSnapshotContext context) {
      redis.flush();
    }

    @Override
    public void initializeState(FunctionInitializationContext context) {}

    @Override
    public void close() {
      if (redis != null) redis.close();
    }
  }

  /** As {@link Customer#write} has it, instead of Flink's general way with objects. */
  public static final class CustomerSerializer extends TypeSerializerSingleton<Customer> {
    @Override
    public boolean isImmutableType() {
      return false;
    }

    @Override
    public Customer createInstance() {
      return new Customer();
    }

    @Override
    public Customer copy(Customer from) {
      return from.copy();
    }

    @Override
    public Customer copy(Customer from, Customer reuse) {
      return from.copy();
    }

    @Override
    public int getLength() {
      return -1;
    }

    @Override
    public void serialize(Customer customer, DataOutputView out) throws IOException {
      customer.write(out);
    }

    @Override
    public Customer deserialize(DataInputView in) throws IOException {
      return Customer.read(in);
    }

    @Override
    public Customer deserialize(Customer reuse, DataInputView in) throws IOException {
      return Customer.read(in);
    }

    @Override
    public void copy(DataInputView in, DataOutputView out) throws IOException {
      Customer.read(in).write(out);
    }

    @Override
    public TypeSerializerSnapshot<Customer> snapshotConfiguration() {
      return new Snapshot();
    }

    public static final class Snapshot extends SimpleTypeSerializerSnapshot<Customer> {
      public Snapshot() {
        super(CustomerSerializer::new);
      }
    }
  }
}
